"""Stop and resume in a plain loop: the records are those of an uninterrupted run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from tests.conftest import blobs
from tests.neutrality.table import PROBES, make

STEPS, PARTS = 7, 2
OLD = Path(__file__).parent / "checkpoint_0_1_0.pt"  # after 4 steps of `train`, by eqtoolbox 0.1.0


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    run_dir: Path,
    steps: int,
    saved: dict[str, Any] | None = None,
    load: bool = True,
    on_error: Any = "raise",
) -> dict[str, Any]:
    """Accumulation, momentum, a scheduler, dropout and running statistics; its checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    parts = [model, optimizer, scheduler]
    probes = make(name for name in PROBES if name != "equivariance")
    monitor = eq.attach(
        model, optimizer, probes=probes, schedule=3, budget=None, run_dir=run_dir,
        resume=saved is not None, on_error=on_error,
    )  # fmt: skip
    if saved is not None:
        for part, state in zip(parts, saved["loop"], strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(saved["rng"])
        if load:
            monitor.load_state_dict(saved["monitor"])
    loss_fn = monitor.loss(cross_entropy)
    x, y = blobs()
    for _ in range(steps):
        for batch in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
            (loss_fn(model, batch) / PARTS).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    state = {
        "loop": [part.state_dict() for part in parts],
        "rng": torch.get_rng_state(),
        "monitor": monitor.state_dict(),
    }
    monitor.close()
    return state


def rows(run_dir: Path) -> list[tuple[Any, ...]]:
    """All but costs, and losses, which an end tells of; symmetries are found anew."""
    return sorted(
        (r.step, r.name, r.status, repr(r.value), "" if "/dimension/" in r.name else r.note)
        for r in eq.Run(run_dir).records()
        if not r.name.startswith(("cost/", "vital/losses"))
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(run_dir, STEPS)
    return run_dir


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_and_moved_has_the_records_of_an_uninterrupted_one(
    tmp_path: Path, whole: Path, stop: int
) -> None:
    torch.save(train(tmp_path / "here", stop), tmp_path / "checkpoint.pt")
    shutil.move(tmp_path / "here", tmp_path / "there")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    train(tmp_path / "there", STEPS - stop, saved)
    assert rows(tmp_path / "there") == rows(whole)
    run = eq.Run(tmp_path / "there")
    assert {r.segment for r in run.records()} == {0, 1}
    assert {"curvature", "tracking", "conservation", "noether", "spectrum"} <= {
        r.probe for r in run.records()
    }


def test_steps_after_the_checkpoint_are_repeated_and_the_last_record_counts(
    tmp_path: Path, whole: Path
) -> None:
    train(tmp_path / "cut", 5)  # killed at step 5, when the last checkpoint was of step 3
    saved = train(tmp_path / "elsewhere", 3)
    train(tmp_path / "cut", STEPS - 3, saved)
    assert rows(tmp_path / "cut") == rows(whole)


def test_without_its_state_a_resumed_run_counts_its_drift_from_there_and_says_so(
    tmp_path: Path, whole: Path
) -> None:
    saved = train(tmp_path / "cut", 4)
    with pytest.warns(RuntimeWarning, match=r"load_state_dict\(\) was not called"):
        train(tmp_path / "cut", STEPS - 4, saved, load=False, on_error="warn")
    one, cut = eq.Run(whole), eq.Run(tmp_path / "cut")
    name = next(n for n in one.names() if n.startswith("conservation/drift/"))
    assert list(one.series(name)[0]) == list(cut.series(name)[0])
    assert cut.series(name)[1][-1] < one.series(name)[1][-1]


# -- checkpoints of 0.1.0 -------------------------------------------------------------------------


@pytest.fixture
def old() -> Any:
    return torch.load(OLD, weights_only=True)


def test_a_run_goes_on_from_a_checkpoint_of_an_earlier_version(
    tmp_path: Path, whole: Path, old: dict[str, Any]
) -> None:
    """What is counted since the start, such as drift, is that of the whole run."""
    train(tmp_path / "run", STEPS - 4, old)
    here, there = eq.Run(tmp_path / "run"), eq.Run(whole)
    own = ("conservation/", "curvature/", "discrete/", "tracking/")
    last = lambda run: {
        r.name: (r.status, r.value)
        for r in run.records()
        if r.step == 6 and r.name.startswith(own) and "/self_test/" not in r.name  # told once
    }
    measured, wanted = last(here), last(there)
    assert {n: status for n, (status, _) in measured.items()} == {
        n: status for n, (status, _) in wanted.items()
    }
    counted = ("conservation/drift/", "conservation/forecast/", "curvature/turn", "discrete/dead")
    known = [n for n, (status, _) in wanted.items() if status == "ok" and n.startswith(counted)]
    assert len(known) > 3
    for name in known:
        assert measured[name][1] == pytest.approx(wanted[name][1], rel=0.02), name


def test_without_the_old_references_drift_is_another(
    tmp_path: Path, whole: Path, old: dict[str, Any]
) -> None:
    old["monitor"]["references"] = {}
    train(tmp_path / "run", STEPS - 4, old)
    name = next(n for n in eq.Run(whole).names() if n.startswith("conservation/drift/"))
    assert eq.Run(tmp_path / "run").series(name)[1][-1] < 0.9 * eq.Run(whole).series(name)[1][-1]


def test_states_have_the_form_that_earlier_versions_read(
    tmp_path: Path, old: dict[str, Any]
) -> None:
    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(inner) for key, inner in value.items()}
        return tuple(value.shape) if isinstance(value, Tensor) else type(value)

    here, there = train(tmp_path / "run", 4)["monitor"]["references"], old["monitor"]["references"]
    assert here.keys() == there.keys()
    for name, saved in there.items():
        assert (here[name] is None) == (saved is None)
        for key, value in (saved or {}).items():
            assert form(here[name][key]) == form(value), (name, key)
