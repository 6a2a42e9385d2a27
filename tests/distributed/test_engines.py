"""Engines that people use: each example attaches on two ranks, and training is what it was."""

import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import eqtoolbox as eq
from tests.distributed.ranks import on_ranks, once

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
NAMES = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
MEASURED = [0, 5, 10]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_rank(rank: int, where: str) -> dict[str, Any]:
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "HF_HUB_OFFLINE": "1"}  # for Lightning
    return {name: both(name, f"{where}/{rank}/{name}", f"{where}/off") for name in NAMES}


def both(name: str, run_dir: str, elsewhere: str) -> dict[str, Any]:
    """The parameters that an example ends with, watched and alone, and what was said of it."""
    main, said = example(name).main, list[str]()
    os.environ["EQTOOLBOX"] = "off"
    alone = main(elsewhere)
    del os.environ["EQTOOLBOX"]
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("eqtoolbox").addHandler(heard)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = main(run_dir)
    said += [str(w.message) for w in caught if "eqtoolbox" in str(w.message)]
    return {"alone": whole(alone), "watched": whole(watched), "said": said}


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters, put together where they are sharded."""
    state = model.state_dict()
    return {n: getattr(p, "full_tensor", lambda p=p: p)() for n, p in state.items()}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    return once(tmp_path_factory, "engines", lambda at: (at, on_ranks(2, on_rank, str(at))))


@pytest.mark.parametrize("name", NAMES)
def test_training_is_bit_identical_on_every_rank(engines: Any, name: str) -> None:
    for answer in engines[1]:
        alone, watched = answer[name]["alone"], answer[name]["watched"]
        assert alone.keys() == watched.keys()
        assert all(torch.equal(p, watched[n]) for n, p in alone.items())
    first, second = (answer[name]["watched"] for answer in engines[1])
    assert all(torch.equal(p, second[n]) for n, p in first.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rank_writes_and_nobody_warns(engines: Any, name: str) -> None:
    where, answers = engines
    assert [answer[name]["said"] for answer in answers] == [[], []]
    assert not (where / "1" / name).exists()
    run = eq.Run(where / "0" / name)
    assert run.info["finished"]
    assert not [e for e in run.events if e["kind"] != "info"]
    assert not [r for r in run.records() if r.status == "failed"]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_one_that_all_ranks_train(engines: Any, name: str) -> None:
    run = eq.Run(engines[0] / "0" / name)
    assert list(run.series("curvature/sharpness")[0]) == MEASURED
    for what in ("cos", "ratio"):
        values = run.series(f"monitor/closure_grad_{what}")[1]
        assert values == pytest.approx([1.0] * len(MEASURED), abs=1e-5)


def alone(name: str, where: Path) -> eq.Run:
    """The example in one process, on the whole of each batch."""
    dist.init_process_group("gloo", init_method=f"file://{where}/store", rank=0, world_size=1)
    try:
        example(name).main(str(where / name))
    finally:
        dist.destroy_process_group()
    return eq.Run(where / name)


@pytest.mark.filterwarnings("ignore")
def test_curvature_is_that_of_one_process_on_the_whole_batch(engines: Any, tmp_path: Path) -> None:
    two, one = eq.Run(engines[0] / "0" / "ddp_loop"), alone("ddp_loop", tmp_path)
    names = {r.name for r in one.records() if r.name.startswith("curvature/") and r.status == "ok"}
    names = {n for n in names if "self_test" not in n}  # which is of rounding
    assert names >= {"curvature/sharpness", "curvature/eigenvalue/1", "curvature/stability"}
    for name in names:
        assert two.series(name)[1] == pytest.approx(one.series(name)[1], rel=1e-3, abs=1e-6), name


def test_sharding_changes_no_number(engines: Any) -> None:
    """Lightning's two strategies train the same network on the same batches."""
    copies, shards = (
        eq.Run(engines[0] / "0" / name) for name in ("with_lightning", "with_model_parallel")
    )
    for name in ("curvature/sharpness", "training/loss"):
        steps, values = copies.series(name)
        assert list(shards.series(name)[0]) == list(steps)
        assert shards.series(name)[1] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_what_each_rank_spent_is_on_record(engines: Any, name: str) -> None:
    run = eq.Run(engines[0] / "0" / name)
    for rank in (0, 1):
        steps, seconds = run.series(f"cost/rank_seconds/{rank}")
        assert list(steps) == MEASURED
        assert (seconds > 0).all()
    probes = ("curvature", "conservation")
    whole = sum(run.series(f"cost/seconds/{probe}")[1] for probe in probes)
    first = run.series("cost/rank_seconds/0")[1]
    assert (first < whole).all(), "the first rank waited for the other one"


def test_torchrun_runs_the_plain_loop(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(EXAMPLES / "ddp_loop.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("eqtoolbox: ") == 1, "one line of the first rank at the end"
    assert list(eq.Run(tmp_path / "runs/ddp_loop").series("curvature/sharpness")[0]) == MEASURED
