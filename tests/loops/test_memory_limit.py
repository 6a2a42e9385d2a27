"""Memory: probes stay within a multiple of training's peak, by measuring a part of the batch."""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
import eqtoolbox.watch.memory as memory
from eqtoolbox.probes.noether import Noether
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.memory import Governor, samples, saved
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NoRoom
from tests.conftest import blobs, mlp


class Loss(Probe):
    """The measured loss, of a probe that says it needs `graphs` times what autograd saves."""

    name, headline, mode = "replay", "loss", "train"

    def __init__(self, graphs: float = 3.0, copies: float = 0.0) -> None:
        self.graphs, self.copies = graphs, copies  # type: ignore[misc]

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("loss", snapshot.objective.loss(snapshot.before).detach())


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    made = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(made @ made.T, torch.arange(len(made)))


def watched(
    probe: Probe,
    loss: Any = cross_entropy,
    model: nn.Module | None = None,
    batch: Any = None,
    **options: Any,
) -> list[Any]:
    """Records of the probe at two steps."""
    torch.manual_seed(0)
    model, sink = model or mlp(6, 256, 3), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"probes": [probe], "schedule": 1, "budget": None, **options}
    with eq.attach(model, optimizer, sinks=[sink], **given) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(2):
            optimizer.zero_grad()
            step_loss(model, blobs() if batch is None else batch).backward()
            optimizer.step()
    return [r for r in sink.records if r.probe == probe.name]


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SLACK", 0)


class Counted(Probe):
    """Bytes that autograd saves for the measured loss, and its samples."""

    name, headline, mode = "counted", "saved", "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("saved", float(saved(snapshot.objective, snapshot.before)))
        yield Measurement("samples", float(samples(snapshot.objective)))


def test_what_autograd_saves_is_counted_once_for_each_storage() -> None:
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.Sigmoid(), nn.Linear(16, 4, bias=False))
    kept, count, *_ = watched(Counted(), lambda m, batch: m(batch[0]).sum(), model)
    n = len(blobs()[0])
    # the input, and the sigmoid's output: for itself and for the layer after it
    assert kept.value == 4 * n * (6 + 16)
    assert count.value == n


def test_what_was_counted_is_freed() -> None:
    """A sigmoid saves its output, which holds it: nothing would ever free such a circle."""
    model = nn.Sequential(nn.Linear(6, 37), nn.Sigmoid())
    watched(Counted(), lambda m, batch: m(batch[0]).sum(), model)
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    assert not [x for x in tensors if x.shape == (len(blobs()[0]), 37)]


@pytest.mark.usefixtures("tight")
def test_a_probe_that_needs_too_much_measures_a_part_and_says_of_how_many() -> None:
    rows = watched(Loss(graphs=3.0), memory=1.25)
    assert [r.status for r in rows] == ["ok", "ok"]
    whole = watched(Loss(graphs=3.0), memory=None)
    count = rows[0].facts["samples_used"]
    assert len(blobs()[0]) > count > 0
    assert f"on {count} samples of the batch" in rows[0].note
    assert rows[0].value != whole[0].value
    assert "samples_used" not in whole[0].facts
    x, y = blobs()
    torch.manual_seed(0)
    expected = cross_entropy(mlp(6, 256, 3), (x[:count], y[:count])).item()
    assert rows[0].value == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("tight")
def test_more_memory_is_more_of_the_batch() -> None:
    counts = [
        watched(Loss(graphs=3.0), memory=limit)[0].facts.get("samples_used", len(blobs()[0]))
        for limit in (1.2, 2.0, 3.0, 6.0)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(blobs()[0])


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(
    ("loss", "model"),
    [
        (contrastive, lambda: mlp(6, 256, 3)),
        (cross_entropy, lambda: nn.Sequential(
            nn.Linear(6, 256), nn.BatchNorm1d(256), nn.Linear(256, 3))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(8))
def test_a_batch_that_cannot_be_cut_is_skipped_and_said(loss: Any, model: Any, seed: int) -> None:
    torch.manual_seed(seed)
    with pytest.warns(RuntimeWarning, match="replay is left out: it needs about") as said:
        rows = watched(Loss(graphs=30.0), loss, model(), memory=1.25)
    assert len(said) == 1
    assert {r.status for r in rows} == {"skipped_memory"}
    assert all(math.isnan(r.value) for r in rows)
    assert "a batch that cannot be cut" in rows[0].note
    assert "give a larger memory=" in rows[0].note


@pytest.mark.usefixtures("tight")
def test_laws_are_true_of_any_part_of_a_batch_that_cannot_be_cut() -> None:
    """Batch normalisation: of what is measured of the batch itself nothing fits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 3),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(4096, 6, generator=draw), torch.randint(0, 3, (4096,), generator=draw)
    rows = watched(Noether(), model=model, batch=(x, y), memory=3.0)
    laws = [r for r in rows if "/second_order/" in r.name]
    assert len({r.name for r in laws}) > 1 and {r.verdict for r in laws} == {"holds"}
    assert all(8 <= r.facts["samples_used"] < 4096 for r in laws)
    with pytest.warns(RuntimeWarning, match="a batch that cannot be cut"):
        rows = watched(Loss(graphs=4.0), model=model, batch=(x, y), memory=3.0)
    assert {r.status for r in rows} == {"skipped_memory"}


def fixed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    if len(batch[0]) != len(blobs()[0]):
        raise AssertionError("a batch of another size")
    return cross_entropy(model, batch)


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (fixed, "a batch of another size"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), "off the mean of its pie"),
        (lambda m, b: m(b).square().mean(), "expected at least 2 samples"),
    ],
)
def test_why_a_batch_cannot_be_cut_is_said(loss: Any, why: str) -> None:
    alone = torch.ones(1, 6) if "at least" in why else None
    with pytest.warns(RuntimeWarning, match="replay is left out"):
        rows = watched(Loss(graphs=30.0), loss, batch=alone, memory=1.25)
    assert {r.status for r in rows} == {"skipped_memory"}
    assert why in rows[0].note


@pytest.mark.usefixtures("tight")
def test_how_a_batch_can_be_cut_is_asked_once_but_for_what_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    known = memory.apart
    monkeypatch.setattr(memory, "apart", lambda *given: asked.append(1) or known(*given))
    assert watched(Loss(graphs=3.0), memory=1.25)[1].facts["samples_used"]
    assert len(asked) == 2 + 3, "of each gradient; of one elsewhere, of halves and of thirds"


@pytest.mark.usefixtures("tight")
def test_dropout_does_not_keep_a_batch_from_being_cut() -> None:
    model = nn.Sequential(nn.Linear(6, 256), nn.Dropout(0.5), nn.ReLU(), nn.Linear(256, 3))
    assert watched(Loss(graphs=3.0), model=model, memory=1.25)[0].facts["samples_used"]


@pytest.mark.usefixtures("tight")
def test_copies_of_the_parameters_that_do_not_fit_are_no_reason_to_cut() -> None:
    with pytest.warns(RuntimeWarning, match="replay is left out"):
        rows = watched(Loss(graphs=0.0, copies=1000.0), memory=1.25)
    assert {r.status for r in rows} == {"skipped_memory"}


def test_small_models_are_left_alone() -> None:
    assert "samples_used" not in watched(Loss(graphs=30.0), memory=1.0)[0].facts


@pytest.mark.usefixtures("tight")
def test_a_loss_that_uses_torch_func_is_not_counted_and_measured_whole() -> None:
    def slope(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.func.grad(lambda x: model(x).square().sum())(batch[0]).square().mean()

    rows = watched(Loss(graphs=3.0), slope, memory=1.25)
    assert [r.status for r in rows] == ["ok", "ok"]


@pytest.mark.parametrize("limit", [0.5, 0, -1, math.nan, math.inf, True, "1.25"])
def test_a_limit_that_is_no_multiple_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="memory is the largest peak as a multiple"):
        Governor(limit)
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="memory is the largest peak as a multiple"):
        eq.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), memory=limit)


@pytest.mark.usefixtures("tight")
def test_what_did_not_fit_is_told_in_the_report(tmp_path: Any) -> None:
    with pytest.warns(RuntimeWarning, match="replay is left out"):
        watched(Loss(graphs=30.0), contrastive, memory=1.25, run_dir=tmp_path / "run")
    (finding,) = (f for f in eq.Run(tmp_path / "run").findings() if "did not fit" in f.text)
    assert finding.level == "note"
    assert "memory=" in finding.text


def peak_of(limit: str) -> float:
    """MiB that a training grows by when curvature is measured; in a process of its own."""
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    command = [sys.executable, "-c", GROWTH, limit]
    return float(subprocess.run(command, capture_output=True, check=True, env=own).stdout)


GROWTH = """
import sys
import torch, torch.nn.functional as F
from torch import nn
import eqtoolbox as eq
import eqtoolbox.watch.memory as memory
from eqtoolbox.probes import Curvature

memory.SLACK = 0
limit = None if sys.argv[1] == "None" else float(sys.argv[1])
model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x = torch.randn(4096, 64)
loss_fn = lambda model, x: model(x).square().mean()
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
probe = Curvature(k=1, smallest=False, max_matvecs=3)
for watched in (False, True):
    if watched:
        own = peak()
        monitor = eq.attach(
            model, optimizer, probes=[probe], schedule=1, budget=None, memory=limit
        )
        loss_fn = monitor.loss(loss_fn)
    for _ in range(2):
        optimizer.zero_grad()
        loss_fn(model, x).backward()
        optimizer.step()
print(peak() - own)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")
def test_the_limit_keeps_the_peak_of_a_training() -> None:
    free, kept = peak_of("None"), peak_of("1.25")
    assert free > 25, "twelve layers save 12 MiB each time"
    assert kept < 0.75 * free


class Within(Probe):
    """Samples and calls of the loss that there is room for beside so many copies and graphs."""

    name, headline, mode = "within", "samples", "train"

    def __init__(self, copies: float, graphs: float) -> None:
        self.needs = copies, graphs
        self.graphs = self.copies = 0.0  # type: ignore[misc]

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        part = snapshot.within(snapshot.objective, *self.needs)
        yield Measurement("samples", float(samples(part)))
        yield Measurement("calls", float(len(part.calls)))


@pytest.mark.usefixtures("tight")
def test_as_much_of_the_batch_is_looked_at_as_there_is_room_for() -> None:
    whole = float(len(blobs()[0]))
    counts = [watched(Within(0.0, graphs), memory=1.25)[0].value for graphs in (0.5, 3.0, 12.0)]
    assert counts[0] == whole > counts[1] > counts[2] > 0
    assert watched(Within(0.0, 12.0), memory=None)[0].value == whole
    row = watched(Within(1000.0, 0.0), memory=1.25)[0]
    assert row.status == "skipped_memory" and "few samples" in row.note


@pytest.mark.usefixtures("tight")
def test_fewer_calls_of_a_loss_are_no_smaller_graph() -> None:
    """Micro-batches are evaluated one by one: leaving some out frees nothing."""
    torch.manual_seed(0)
    model, sink = mlp(6, 256, 3), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = blobs()
    probes = [Within(0.0, 3.0)]
    with eq.attach(model, optimizer, probes=probes, schedule=1, budget=None, sinks=[sink]) as m:
        loss = m.loss(cross_entropy)
        for _ in range(4):
            (loss(model, (x, y)) / 4).backward()
        optimizer.step()
    found = {r.name: r.value for r in sink.records if r.probe == "within"}
    alone = watched(Within(0.0, 3.0), memory=1.25)[0].value
    assert found["within/calls"] == 1 and found["within/samples"] <= alone < len(x)


@pytest.mark.usefixtures("tight")
def test_laws_hold_where_they_were_found_on_a_part_of_the_batch() -> None:
    x = torch.randn(2048, 6, generator=torch.Generator().manual_seed(0))
    batch = x, x[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    probe = eq.probes.Conservation(growth=0)
    rows = watched(probe, model=model, batch=batch, memory=1.25)
    laws = [r for r in rows if r.name == "conservation/first_order/rescale"]
    assert laws and {r.verdict for r in laws} == {"holds"}


def rows_of(limit: float | None, model: nn.Module, probes: Any) -> list[Any]:
    """Records of two steps of a loss that saves little beside the parameters."""
    torch.manual_seed(0)
    sink, x = MemorySink(), torch.randn(4, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    given = {"probes": probes, "schedule": 1, "budget": None, "memory": limit}
    with eq.attach(model, optimizer, sinks=[sink], **given) as monitor:
        loss = monitor.loss(lambda m, x: m(x).square().mean())
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
    return sink.records


def rows_with(limit: float | None, model: nn.Module, probes: Any) -> dict[str, Any]:
    """The first record of each name."""
    return {r.name: r for r in reversed(rows_of(limit, model, probes))}


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8))


@pytest.mark.usefixtures("tight")
def test_a_search_with_less_memory_finds_the_same_sharpness_and_says_so() -> None:
    """From all directions to fewer vectors, to the sharpest alone, to forwards in its place."""
    full = rows_with(None, wide(), [eq.probes.Curvature(k=3, tol=1e-3, max_matvecs=400)])
    names, seen = set(full), set()
    for limit in (32.0, 14.0, 10.5, 6.5):
        found = rows_with(limit, wide(), [eq.probes.Curvature(k=3, tol=1e-3, max_matvecs=400)])
        sharpness = found["curvature/sharpness"]
        seen.add(sharpness.note.partition(", to stay")[0])
        assert sharpness.status == "ok" and set(found) <= names
        assert sharpness.value == pytest.approx(full["curvature/sharpness"].value, rel=1e-4)
    alone = "with k=1, smallest=False, rows={}"
    assert seen == {"", "with rows=6", alone.format(3), alone.format(2)}


@pytest.mark.usefixtures("tight")
def test_where_curvature_has_no_room_critical_sharpness_is_measured_in_its_place() -> None:
    critical = eq.probes.CriticalSharpness()
    with pytest.warns(RuntimeWarning, match="; critical is measured in its place"):
        found = rows_with(3.0, wide(), [eq.probes.Curvature()])
    assert found["curvature/sharpness"].status == "skipped_memory"
    alone = rows_with(None, wide(), [critical])
    for name in ("critical/factor", "critical/sharpness"):
        assert found[name].status == "ok" and found[name].value == alone[name].value
    assert "cost/seconds/critical" in found and "cost/seconds/curvature" in found


@pytest.mark.usefixtures("tight")
def test_nothing_is_measured_twice_in_a_place() -> None:
    """Who asks for both gets each once."""
    probes = [eq.probes.Curvature(), eq.probes.CriticalSharpness()]
    with pytest.warns(RuntimeWarning, match="curvature is left out"):
        records = rows_of(3.0, wide(), probes)
    assert [r.step for r in records if r.name == "critical/factor"] == [0, 1]


def divided(model: nn.Module, loss: Any, batch: Any, memory: float = 1.25) -> tuple[int, Any]:
    """Pieces of the batch that the gradient check takes where there is no room, and its record."""
    torch.manual_seed(0)
    sink, seen = MemorySink(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    class Sees(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            seen.append(snapshot.parts)
            return iter(())

    given = {"probes": [Sees(0.0)], "schedule": 1, "budget": None, "memory": memory}
    with eq.attach(model, optimizer, sinks=[sink], **given) as monitor:
        step_loss = monitor.loss(loss)
        step_loss(model, batch).backward()
        optimizer.step()
    (row,) = (r for r in sink.records if r.name == "monitor/closure_grad_cos")
    return seen[0], row


@pytest.mark.usefixtures("tight")
def test_a_gradient_is_checked_piece_by_piece_where_memory_is_short() -> None:
    batch = torch.randn(64, 6), torch.randint(3, (64,))
    normed = nn.Sequential(nn.Linear(6, 256), nn.BatchNorm1d(256), nn.Linear(256, 3))
    dropped = nn.Sequential(nn.Linear(6, 256), nn.Dropout(0.5), nn.Linear(256, 3))
    parts, row = divided(mlp(6, 256, 3), cross_entropy, batch)
    assert parts > 1 and row.value == pytest.approx(1.0, abs=1e-6)
    for model, loss in (
        (normed, cross_entropy),
        (dropped, cross_entropy),
        (mlp(6, 256, 3), contrastive),
    ):
        parts, row = divided(model, loss, batch)
        assert parts == 1 and row.value == pytest.approx(1.0, abs=1e-6)


def of_fours(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The spread within groups of four neighbours, of which halves of the batch keep all."""
    y = model(batch[0])
    groups = y.reshape(-1, 4, y.shape[1]) if len(y) % 4 == 0 else y[None]
    return groups.var(dim=1).mean() + F.cross_entropy(y, batch[1])


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(
    ("loss", "size"),
    [(cross_entropy, 0.0), (cross_entropy, 1e-6), (of_fours, None)],
    ids=["zero head", "tiny head", "groups"],
)
def test_pieces_that_are_no_mean_elsewhere_are_not_summed(loss: Any, size: float | None) -> None:
    """With a head of zeros after batch normalisation every piece has the loss log C at first."""
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    layers = [nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 3)]
    if size is not None:
        layers.insert(1, nn.BatchNorm1d(256))
        nn.init.normal_(layers[-1].weight, std=size), nn.init.zeros_(layers[-1].bias)
    parts, row = divided(nn.Sequential(*layers), loss, (x, y), memory=1.0)
    assert parts == 1 and row.value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.usefixtures("tight")
def test_a_batch_of_which_a_mask_leaves_more_of_some_pieces_is_not_cut() -> None:
    """The first batch has no padding, and tells nothing of the next."""
    torch.manual_seed(0)
    model, sink, seen = mlp(6, 256, 3), MemorySink(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))

    class Sees(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            seen.append(snapshot.parts)
            return iter(())

    probes = [Sees(0.0), eq.probes.CriticalSharpness()]
    options: dict[str, Any] = {"schedule": 1, "budget": None, "memory": 1.25}
    with eq.attach(model, optimizer, probes=probes, sinks=[sink], **options) as monitor:
        loss = monitor.loss(cross_entropy)
        for masked in (0, 9):
            optimizer.zero_grad()
            loss(model, (x, torch.where(torch.arange(16) < masked, -100, y))).backward()
            optimizer.step()
    assert seen[0] > 1 and seen[1] == 1
    cosines = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
    assert cosines == pytest.approx([1.0, 1.0], abs=1e-6)


class Odd(Loss):
    """A probe that asks for more than there is, and whose way out is not to be had."""

    def __init__(self, leaner: Any = None, instead: Any = None) -> None:
        super().__init__(0.0, 1000.0)
        self._leaner, self._instead = leaner, instead

    def leaner(self) -> Any:
        return self._leaner() if self._leaner else None

    def instead(self) -> Any:
        return self._instead() if self._instead else None


def _raises() -> Any:
    raise RuntimeError("no way out")


class OfOld(Loss):
    instead: Any = "something else"  # what an earlier version took


@pytest.mark.usefixtures("tight")
@pytest.mark.filterwarnings("ignore:eqtoolbox")
@pytest.mark.parametrize(
    "probe",
    [Odd(leaner=_raises), Odd(instead=_raises), Odd(instead=dict), Odd(leaner=Loss), OfOld(0, 1e3)],
)
def test_a_way_out_that_fails_costs_its_probe_alone(probe: Any) -> None:
    rows = rows_of(3.0, wide(), [probe, eq.probes.CriticalSharpness()])
    assert [r.status for r in rows if r.name == "critical/factor"] == ["ok", "ok"]
    said = {r.status for r in rows if r.name.startswith("replay/")}
    assert said <= {"ok", "failed", "skipped_memory"} and said


@pytest.mark.usefixtures("tight")
@pytest.mark.filterwarnings("ignore:eqtoolbox")
@pytest.mark.parametrize("limit", [1.0, 1.25, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("loss", [cross_entropy, fixed, contrastive])
def test_no_probe_fails_where_memory_is_short(loss: Any, limit: float) -> None:
    """Batch normalisation takes no single sample, and a loss of the user's no other batch."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3)
    model, sink = nn.Sequential(*layers), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"schedule": 1, "budget": None, "memory": limit, "sinks": [sink]}
    with eq.attach(model, optimizer, **given) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(2):
            optimizer.zero_grad()
            step_loss(model, blobs()).backward()
            optimizer.step()
    assert not [r for r in sink.records if r.status == "failed"]


@pytest.mark.parametrize(("room", "kept"), [(3.5, 1), (2.5, 0), (1.5, 1)])
def test_a_gradient_that_was_replayed_before_is_given_up_where_it_takes_the_room(
    room: float, kept: int
) -> None:
    """Not where there is room beside it, nor where nothing is measured anyway."""
    seen = []

    class Slopes(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            seen.append(snapshot)
            yield Measurement("loss", 1.0)

    watched(Slopes(graphs=0.0))
    size = sum(p.nbytes for p in seen[0].before.values())
    snapshot = replace(seen[0], room=room * size, slopes=[])
    snapshot.slope(snapshot.objective)
    with suppress(NoRoom):
        Governor(1.25).fitted(Loss(graphs=0.0, copies=2.0), snapshot)
    assert len(snapshot.slopes) == kept
