"""Whatever fails, training goes on unchanged, what was logged is there, and one warning says it."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import blobs, mlp

STEPS = 6


class Loss(Probe):
    """The replayed loss."""

    name = "replay"
    headline = "loss"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("loss", float(snapshot.objective.loss(snapshot.before).detach()))


class Hungry(Probe):
    """Runs out of memory above a number of samples."""

    name = "hungry"
    headline = "samples"
    mode = "train"

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        samples = sum(len(piece.call.args[0]) for piece in snapshot.objective.pieces)
        if samples > self.limit:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        yield Measurement("samples", samples)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    monitor_of: Any = None, parts: int = 1, between: Any = None, steps: int = STEPS
) -> tuple[list[Tensor], list[str]]:
    """Parameters after training, and the warnings on the way."""
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        monitor = monitor_of(model, optimizer) if monitor_of else None
        loss_fn = monitor.loss(cross_entropy) if monitor else cross_entropy
        x, y = blobs()
        for step in range(steps):
            for batch in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (loss_fn(model, batch) / parts).backward()
            try:
                optimizer.step()
            except KeyboardInterrupt:
                seen.append(KeyboardInterrupt())  # type: ignore[arg-type]
            optimizer.zero_grad()
            if between:
                between(step)
        if monitor:
            monitor.close()
    parameters = [p.detach().clone() for p in model.parameters()]
    return parameters, [str(getattr(w, "message", type(w).__name__)) for w in seen]


def unchanged(parameters: list[Tensor], parts: int = 1) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parameters, train(parts=parts)[0], strict=True))


def watched(sink: Any, *probes: Probe, **options: Any) -> Any:
    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        given: dict[str, Any] = {"probes": list(probes), "schedule": 1, "budget": None}
        return eq.attach(model, optimizer, sinks=[sink], **{**given, **options})

    return attach


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
def test_a_probe_out_of_memory_goes_on_with_half_of_its_batch(parts: int) -> None:
    sink = MemorySink()
    parameters, seen = train(watched(sink, Hungry(32), Loss()), parts)
    assert unchanged(parameters, parts)
    rows = [r for r in sink.records if r.name == "hungry/samples"]
    assert [r.value for r in rows] == [32.0] * STEPS
    assert all("on the first half of the batch" in r.note for r in rows)
    assert len(seen) == 1
    assert "hungry ran out of memory; from step 0 on it measures half" in seen[0]
    assert len([r for r in sink.records if r.name == "replay/loss" and r.status == "ok"]) == STEPS


def test_half_of_a_window_weighs_as_much_as_the_whole() -> None:
    class Sum(Hungry):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            list(super().measure(snapshot, reference, rng))
            yield Measurement("samples", float(snapshot.objective.loss(snapshot.before).detach()))

    sink = MemorySink()
    train(watched(sink, Sum(32)), 4, steps=1)
    torch.manual_seed(0)
    x, y = blobs()
    with torch.no_grad():
        expected = float(cross_entropy(mlp(6, 8, 3), (x[:32], y[:32])))
    (row,) = [r for r in sink.records if r.name == "hungry/samples"]
    assert row.value == pytest.approx(expected, rel=1e-5)


def test_a_probe_that_does_not_fit_on_half_a_batch_is_disabled() -> None:
    sink = MemorySink()
    parameters, seen = train(watched(sink, Hungry(3), Loss()))
    assert unchanged(parameters)
    rows = [r for r in sink.records if r.name == "hungry/samples"]
    assert [r.status for r in rows] == ["failed"]
    assert len(seen) == 2
    assert "hungry is disabled: it ran out of memory on half of a batch" in seen[1]
    assert len([r for r in sink.records if r.name == "replay/loss"]) == STEPS


def test_no_memory_for_a_copy_of_the_parameters_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from eqtoolbox.watch.step import Step

    def full(step: Step, what: str, live: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    sink = MemorySink()
    with monkeypatch.context() as patch:
        patch.setattr(Step, "_copied", full)
        parameters, seen = train(watched(sink, Loss()))
    assert unchanged(parameters)
    assert len(seen) == 1
    assert "monitor failed with OutOfMemoryError" in seen[0]
    assert [e[3] for e in sink.events][-1] == "monitor is disabled after 3 failures"
    rows = [r for r in sink.records if r.name == "replay/loss"]
    assert [r.status for r in rows] == ["failed"] * 3
    assert "OutOfMemoryError: tried to allocate 20 GiB" in rows[0].note


# -- probes ----------------------------------------------------------------------------------------


def test_an_interrupt_inside_a_probe_reaches_the_user_and_measuring_goes_on() -> None:
    class Interrupting(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            snapshot.training.model.eval()
            torch.rand(1)
            if snapshot.step == 2:
                raise KeyboardInterrupt
            yield Measurement("loss", 1.0)

    sink = MemorySink()
    parameters, seen = train(watched(sink, Interrupting()))
    assert unchanged(parameters)
    assert seen == ["KeyboardInterrupt"]
    assert [r.step for r in sink.records if r.name == "replay/loss"] == [0, 1, 3, 4, 5]


def test_a_batch_that_cannot_be_copied_stops_nothing() -> None:
    class Stubborn(dict[str, Tensor]):
        def __iter__(self) -> Any:
            raise RuntimeError("this batch is read by its keys only")

        keys = values = items = __iter__  # type: ignore[assignment]

    def attach(model: nn.Module, optimizer: Any) -> Any:
        monitor = watched(sink, Loss())(model, optimizer)
        loss_fn = monitor.loss(lambda m, b: cross_entropy(m, (b["x"], b["y"])))

        class Wrapped:
            close = monitor.close

            def loss(self, _: Any) -> Any:
                return lambda m, b: loss_fn(m, Stubborn(x=b[0], y=b[1]))

        return Wrapped()

    sink = MemorySink()
    parameters, seen = train(attach)
    assert unchanged(parameters)
    assert len(seen) >= 1
    assert not [r for r in sink.records if r.name == "replay/loss" and r.status == "ok"]


def test_a_run_that_turns_nan_is_recorded_as_such_and_goes_on() -> None:
    def exploding(monitor_of: Any) -> tuple[list[Tensor], MemorySink]:
        torch.manual_seed(0)
        model, sink = mlp(6, 8, 3), MemorySink()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        monitor = monitor_of(model, optimizer, sink) if monitor_of else None
        loss_fn = monitor.loss(cross_entropy) if monitor else cross_entropy
        x, y = blobs()
        for step in range(4):
            optimizer.zero_grad()
            loss_fn(model, (x * (float("nan") if step == 2 else 1.0), y)).backward()
            optimizer.step()
        if monitor:
            monitor.close()
        return [p.detach() for p in model.parameters()], sink

    def attach(model: nn.Module, optimizer: Any, sink: MemorySink) -> eq.Monitor:
        return eq.attach(model, optimizer, schedule=1, budget=None, sinks=[sink])

    watched_parameters, sink = exploding(attach)
    alone, _ = exploding(None)
    for a, b in zip(watched_parameters, alone, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    late = [r for r in sink.records if r.step >= 2]
    assert not [r for r in sink.records if r.status == "failed"]
    assert {r.status for r in late if r.name == "curvature/sharpness"} == {"non_finite"}
    assert [r.status for r in late if r.name == "training/loss"] == ["non_finite"] * 2
    assert {r.step for r in sink.records if r.name == "curvature/sharpness"} == {0, 1, 2, 3}


@pytest.mark.parametrize("data", [False, True])
def test_what_a_loss_writes_into_live_parameters_is_undone(data: bool) -> None:
    """A momentum encoder that is updated inside the forward; also where it is hidden by `.data`."""

    class Momentum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.slow = mlp(6, 8, 3), mlp(6, 8, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                    (slow.data if data else slow).mul_(0.9).add_(fast.detach(), alpha=0.1)
            return self.net(x) + self.slow(x)

    def end(watch: bool) -> tuple[list[Tensor], MemorySink, list[str]]:
        model, sink = Momentum(), MemorySink()
        optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
        monitor = watched(sink, Loss(), Conservation())(model, optimizer) if watch else None
        loss_fn = monitor.loss(cross_entropy) if monitor else cross_entropy
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                optimizer.zero_grad()
                loss_fn(model, blobs()).backward()
                optimizer.step()
        if monitor:
            monitor.close()
        return [p.detach() for p in model.parameters()], sink, [str(w.message) for w in seen]

    (a, sink, seen), (b, _, _) = end(True), end(False)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert seen == []
    rows = [r for r in sink.records if r.name == "replay/loss"]
    assert [r.status for r in rows] == ["ok"] * 3


# -- disk ------------------------------------------------------------------------------------------


class FullDisk:
    """A file whose disk is full, or read only, after some bytes."""

    def __init__(self, file: Any, room: int, number: int) -> None:
        self._file, self._room, self._number = file, room, number

    def write(self, line: bytes) -> int:
        if self._room >= len(line):
            self._room -= len(line)
            return int(self._file.write(line))
        if self._number == errno.ENOSPC and self._room:
            written = int(self._file.write(line[: self._room]))  # the last bytes that fit
            self._room = 0
            return written
        raise OSError(self._number, os.strerror(self._number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_gives_out_costs_later_rows_only(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eqtoolbox.sinks.jsonl as module

    append = module._append
    monkeypatch.setattr(module, "_append", lambda path: FullDisk(append(path), 1500, number))
    sink = MemorySink()
    parameters, seen = train(watched(sink, Loss(), Conservation(), run_dir=tmp_path / "run"))
    assert unchanged(parameters)
    assert len(seen) == 1
    assert "RunDirectory is disabled, it raised OSError" in seen[0]
    assert os.strerror(number) in seen[0]
    kept = eq.Run(tmp_path / "run").records()
    assert 3 <= len(kept) < len(sink.records)
    assert kept[0].value == sink.records[0].value


def test_a_run_directory_that_is_removed_is_noticed(tmp_path: Path) -> None:
    def remove(step: int) -> None:
        if step == 2:
            shutil.rmtree(tmp_path / "run")

    sink = MemorySink()
    attach = watched(sink, Loss(), run_dir=tmp_path / "run")
    parameters, seen = train(attach, between=remove)
    assert unchanged(parameters)
    assert len(seen) == 1
    assert "was removed while it was written" in seen[0]
    assert [r.step for r in sink.records if r.name == "replay/loss"] == list(range(STEPS))
    assert not (tmp_path / "run").exists()


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*worker processes")
def test_forked_loader_workers_write_nothing_and_close_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(
        TensorDataset(*blobs()), batch_size=16, num_workers=2, multiprocessing_context="fork"
    )
    with eq.attach(
        model, optimizer, probes=[Loss()], schedule=1, budget=None, run_dir=tmp_path / "run"
    ) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for _ in range(2):
            for batch in loader:
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                optimizer.step()
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert list(eq.Run(tmp_path / "run").series("replay/loss")[0]) == list(range(8))


CHILD = """
import os, signal, sys
from tests.loops.test_faults import Loss, cross_entropy, watched
from tests.conftest import blobs, mlp
import torch, eqtoolbox as eq
torch.manual_seed(0)
model = mlp(6, 8, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = eq.attach(model, optimizer, probes=[Loss()], schedule=1, budget=None,
                    run_dir=sys.argv[1], resume=len(sys.argv) > 2)
loss_fn = monitor.loss(cross_entropy)
for step in range(100):
    optimizer.zero_grad()
    loss_fn(model, blobs()).backward()
    optimizer.step()
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_training_keeps_its_rows_and_goes_on_elsewhere(tmp_path: Path) -> None:
    """The directory is moved, as to another machine, and the run appended to."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "here")], cwd=root, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert list(eq.Run(tmp_path / "here").series("replay/loss")[0]) == list(range(5))
    shutil.move(tmp_path / "here", tmp_path / "there")
    sink = MemorySink()
    attach = watched(sink, Loss(), run_dir=tmp_path / "there", resume=True)
    parameters, seen = train(attach)
    assert unchanged(parameters)
    assert len(seen) == 1
    assert "resume=True, but load_state_dict() was not called" in seen[0]
    run = eq.Run(tmp_path / "there")
    assert list(run.series("replay/loss")[0]) == list(range(5 + STEPS))
    assert {r.segment for r in run.records()} == {0, 1}
    assert run.torn == 0


def test_a_line_that_fits_in_part_is_an_error(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path / "run")) as store:
        store._records = FullDisk(store._records, 10, errno.ENOSPC)
        with pytest.raises(OSError, match="No space left on device"):
            store.write(eq.Record(step=0, name="a/b", value=1.0))
