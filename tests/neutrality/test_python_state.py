"""What a model or a loss keeps in plain Python is what it would be if nobody watched."""

import collections
import functools
import itertools
import multiprocessing.process
import os
import queue
import random
import sqlite3
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.replay import outside
from eqtoolbox.replay.tables import Exchanged
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality import belongings, roundabout, standard_belongings, tensor_belongings
from tests.neutrality.belongings import Batch, Net, cross_entropy

KINDS = {
    **belongings.KINDS, **roundabout.KINDS, **tensor_belongings.KINDS, **standard_belongings.KINDS
}  # fmt: skip
LATE = (  # only watched; begun inside of the step
    "large_tensor", "limited_cache", "large_sparse", "thread_that_writes_and_draws",
)  # fmt: skip
SAME = (  # twice or once
    "discriminator_frozen_and_freed", "list_of_tensors_with_graphs", "penalty_of_a_gradient",
    "backward_whose_gradient_is_used", "inner_step_by_functional_call", "inner_steps_of_a_copy",
    "modes_left_behind", "gradient_and_flag_of_a_small_tensor", "seed_set_in_the_loss",
    "seed_set_by_the_generator", "factory_of_a_default_dict",
)  # fmt: skip
MOVED = {n: k for n, k in KINDS.items() if n not in SAME}
COPIED = {n: k for n, k in KINDS.items() if n not in LATE}


def batches(count: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(8, 6, generator=generator)
        yield x, torch.randint(0, 3, (8,), generator=generator)


def trained(
    kind: Any, surface: str = "", probes: Any = None, sink: Any = None, steps: int = 4
) -> list[Any]:
    """Losses, parameters and state after a training; `surface` is empty where nobody watches."""
    _seeded()
    model, loss_fn, look = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion, monitor, losses = nn.CrossEntropyLoss(), None, []
    if surface:
        given = {"criterion": criterion} if surface == "criterion" else {}
        monitor = eq.attach(
            model, optimizer, schedule=1, budget=None, sinks=[sink] if sink else [],
            probes={"conservation": {}, "curvature": {"k": 1, "max_matvecs": 6}, "noether": {}}
            if probes is None else probes, **given,
        )  # fmt: skip
        loss_fn = monitor.loss(loss_fn) if surface == "decorator" else loss_fn
    for batch in batches(steps):
        optimizer.zero_grad()
        if surface == "criterion" and loss_fn is cross_entropy:
            loss = criterion(model(batch[0]), batch[1])
        else:
            loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    streams = [torch.rand(1).item(), random.random(), np.random.rand()]
    return [losses, [p.tolist() for p in model.parameters()], look(), streams, *_left(model)]


def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _left(model: nn.Module) -> list[Any]:
    return [sorted(vars(m)) for m in model.modules()]


@pytest.mark.parametrize("surface", ["decorator", "criterion"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_python_state_is_what_it_would_be(kind: Any, surface: str) -> None:
    sink = MemorySink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some of these losses have no symmetry
        watched = trained(kind, surface, sink=sink)
    assert watched == trained(kind)


@pytest.mark.parametrize("kind", COPIED.values(), ids=COPIED.keys())
def test_losses_with_python_state_are_measured_from_where_the_step_was(kind: Any) -> None:
    """The replayed gradient is the step's own: evaluations begin where the step's own began."""
    sink = MemorySink()
    trained(kind, "decorator", {"curvature": {"k": 1, "max_matvecs": 6}}, sink)
    values = {r.name: r for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"].value == pytest.approx(1.0, abs=1e-5)
    assert values["curvature/sharpness"].status in ("ok", "not_converged")


@pytest.mark.parametrize("kind", MOVED.values(), ids=MOVED.keys())
def test_a_replay_without_protection_is_seen(kind: Any) -> None:
    def replayed() -> Any:
        model, loss_fn, look = kind()

        def twice(model: nn.Module, batch: Batch) -> Tensor:
            loss = loss_fn(model, batch)
            loss_fn(model, (batch[0].double().float(), batch[1]))
            return loss

        return model, twice, look

    try:
        twice = trained(replayed)
    except RuntimeError:  # the training breaks
        return
    assert twice != trained(kind)


def _generator() -> Any:
    held = type("Held", (), {})()
    held.batches = (0.01 * k for k in range(10**6))
    loss = lambda model, batch: cross_entropy(model, batch) * (1 + next(held.batches))
    return Net(), loss, lambda: next(held.batches)


def _in_a_closure() -> Any:
    rows = (0.01 * k for k in range(10**6))
    loss = lambda model, batch: cross_entropy(model, batch) * (1 + next(rows))
    return Net(), loss, lambda: next(rows)


def _in_a_tuple() -> Any:
    model = Net()
    model.pair = ("x", (0.01 * k for k in range(10**6)))
    model.note = lambda x: x * (1 + next(model.pair[1]))
    return model, cross_entropy, lambda: next(model.pair[1])


ROWS: Any = None


def _in_the_module() -> Any:
    global ROWS
    ROWS = (0.01 * k for k in range(10**6))
    return Net(), lambda m, b: cross_entropy(m, b) * (1 + next(ROWS)), lambda: next(ROWS)


def _loader() -> Any:
    data = torch.utils.data.TensorDataset(torch.arange(10000.0) * 0.001)
    held = type("Held", (), {})()
    held.it = iter(torch.utils.data.DataLoader(data))
    loss = lambda model, batch: cross_entropy(model, batch) * (1 + next(held.it)[0].item())
    return Net(), loss, lambda: next(held.it)[0].item()


def _database() -> Any:
    base = sqlite3.connect(":memory:")
    base.execute("create table losses (value real)")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch)
        base.execute("insert into losses values (?)", (value.item(),))
        return value

    return Net(), loss, lambda: base.execute("select * from losses").fetchall()


def _swallowed() -> Any:
    rows = (0.01 * k for k in range(10**6))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        try:
            more = next(rows)
        except Exception:
            more = 0.0
        return cross_entropy(model, batch) * (1 + more)

    loss.__qualname__ = "swallowed"
    return Net(), loss, lambda: next(rows)


def _tracker() -> Any:
    model = Net()
    model.writer = Writer()

    def note(x: Tensor) -> Tensor:
        model.writer.add_scalar("mean", float(x.mean()))
        with model.writer:
            print("a loss that speaks")
        return x

    model.note = note
    return model, cross_entropy, lambda: Writer.lines


class Writer:
    """As a tracker's."""

    lines = 0

    def add_scalar(self, *_: Any) -> None:
        Writer.lines += 1

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        Writer.lines += 1


Writer.__module__ = "tensorboardX.writer"


def test_what_a_loss_tells_a_tracker_or_prints_is_said_once(capsys: Any) -> None:
    sink = MemorySink()
    said = []
    for surface in ("", "decorator"):
        Writer.lines = 0
        said.append([trained(_tracker, surface, sink=sink), capsys.readouterr().out])
    assert said[0] == said[1]
    assert said[0][0][2] == 8
    rows = [r.status for r in sink.records if r.name == "curvature/sharpness"]
    assert len(rows) == 4
    assert {*rows} <= {"ok", "not_converged"}, "such a loss is measured"


def _queue() -> Any:
    waiting: queue.Queue[float] = queue.Queue()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch)
        waiting.put(value.item())
        return value

    return Net(), loss, lambda: waiting.qsize()


def _hidden(hold: Any) -> Any:
    """A row whose generator is held by what `hold` makes of it; it says how to reach it again."""

    def kind() -> Any:
        rows = (0.01 * k for k in range(10**6))
        held, reached = hold(rows)

        def closed(held: Any) -> Any:
            return lambda model, batch: cross_entropy(model, batch) * (1 + next(reached(held)))

        return Net(), closed(held), lambda: next(rows)

    return kind


def _object_array(rows: Any) -> Any:
    held = np.empty(1, object)
    held[0] = rows
    return held, lambda held: held[0]


KEPT: list[Any] = []


def _weakly(rows: Any) -> Any:
    KEPT.append(rows)
    return weakref.ref(rows), lambda held: held()


HIDDEN = {
    "set": lambda rows: ({rows}, lambda held: next(iter(held))),
    "frozenset": lambda rows: (frozenset([rows]), lambda held: next(iter(held))),
    "key": lambda rows: ({rows: 1}, lambda held: next(iter(held))),
    "array": _object_array,
    "partial": lambda rows: (functools.partial(iter, rows), lambda held: held()),
    "keyword": lambda rows: (functools.partial(lambda it: it, it=rows), lambda held: held()),
    "method": lambda rows: (rows.__iter__, lambda held: held()),
    "reference": _weakly,
    "proxy": lambda rows: (types.MappingProxyType({"it": rows}), lambda held: held["it"]),
    "chain": lambda rows: (itertools.chain(rows), lambda held: held),
    "named": lambda rows: (collections.namedtuple("Pair", "a b")(1, rows), lambda held: held.b),
}


@pytest.mark.parametrize("hold", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_generator_is_refused_wherever_it_is_held(hold: Any) -> None:
    kind = _hidden(hold)
    with pytest.warns(RuntimeWarning, match=r"uses \S*held\S*, an? \w+ that cannot be put"):
        watched = trained(kind, "decorator")
    assert watched == trained(kind)


def test_what_a_loss_would_write_outside_the_process_is_refused_before_it_does(
    tmp_path: Any,
) -> None:
    def kind() -> Any:
        (tmp_path / "calls.txt").write_text("")

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with (tmp_path / "calls.txt").open("a") as file:
                file.write("called\n")
            return cross_entropy(model, batch)

        return Net(), loss, (tmp_path / "calls.txt").read_text

    with pytest.warns(RuntimeWarning, match=r"the loss writes a file \(.*calls\.txt\)"):
        watched = trained(kind, "decorator")
    assert watched == trained(kind)


def test_what_a_loss_reads_from_files_is_measured(tmp_path: Any) -> None:
    (tmp_path / "scale.txt").write_text("0.5")

    def kind() -> Any:
        read = (tmp_path / "scale.txt").read_text
        return Net(), lambda m, b: cross_entropy(m, b) * float(read()), lambda: None

    sink = MemorySink()
    assert trained(kind, "decorator", sink=sink) == trained(kind)
    rows = [r.status for r in sink.records if r.name == "curvature/sharpness"]
    assert {*rows} <= {"ok", "not_converged"}


def _forks() -> None:
    if os.fork() == 0:  # pragma: no cover
        os._exit(0)
    os.wait()


def _workers() -> Any:
    rows = torch.utils.data.TensorDataset(torch.ones(4, 6))
    return [*torch.utils.data.DataLoader(rows, batch_size=2, num_workers=1)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", [_forks, _workers], ids=["fork", "workers"])
def test_a_loss_that_starts_a_process_is_refused_before_it_does(start: Any) -> None:
    def kind() -> Any:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            start()
            return cross_entropy(model, batch)

        return Net(), loss, lambda: None

    with pytest.warns(RuntimeWarning, match="the loss starts a process"):
        watched = trained(kind, "decorator", steps=2)
    assert watched == trained(kind, steps=2)


def test_a_process_outside_of_an_evaluation_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is inside where nobody answers for `start`: the loss is then evaluated with it."""
    started: list[str] = []
    process = multiprocessing.process.BaseProcess
    monkeypatch.setattr(process, "start", lambda self: started.append(self.name))

    def kind() -> Any:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            multiprocessing.Process(name="one").start()
            return cross_entropy(model, batch)

        return Net(), loss, lambda: None

    with pytest.warns(RuntimeWarning, match="the loss starts a process"):
        trained(kind, "decorator", steps=2)
    assert started == ["one", "one"]
    monkeypatch.setattr(outside, "_started", lambda original, process: original(process))
    trained(kind, "decorator", steps=2)
    assert len(started) > 4, "the law is one of the answer, not of the program"


REFUSED = {
    "batches": _generator, "rows": _in_a_closure, "pair": _in_a_tuple, "ROWS": _in_the_module,
    "it": _loader, "base": _database, "waiting": _queue, "swallowed": _swallowed,
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_put_back_is_refused_by_name_before_it_moves(name: str, kind: Any) -> None:
    sink = MemorySink()
    with pytest.warns(RuntimeWarning, match=f"the loss uses [^,]*{name}") as seen:
        watched = trained(kind, "decorator", sink=sink)
    assert watched == trained(kind)
    assert len([w for w in seen if "the loss uses" in str(w.message)]) == 1
    rows = [r for r in sink.records if r.name.startswith("curvature/")]
    assert rows
    assert {r.status for r in rows} == {"not_applicable"}


def test_probes_that_only_sum_go_on_where_the_loss_is_refused(tmp_path: Any) -> None:
    log = (tmp_path / "log.txt").open("w")
    sink = MemorySink()

    def kind() -> Any:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            log.write("called\n")
            return cross_entropy(model, batch)

        return Net(), loss, lambda: None

    with pytest.warns(RuntimeWarning, match="log, a TextIOWrapper"):
        trained(kind, "decorator", sink=sink)
    log.close()
    assert (tmp_path / "log.txt").read_text() == "called\n" * 4
    assert {r.step for r in sink.records if r.name == "training/applied"} == {0, 1, 2, 3}


def test_a_file_that_is_read_keeps_its_place(tmp_path: Any) -> None:
    (tmp_path / "rows.txt").write_text("".join(f"{k:03d}\n" for k in range(100)))

    def kind() -> Any:
        rows = (tmp_path / "rows.txt").open("rb")
        loss = lambda m, b: cross_entropy(m, b) * (1 + 0.01 * int(rows.read(4)))
        return Net(), loss, lambda: (rows.tell(), rows.close())

    assert trained(kind, "decorator") == trained(kind)


@pytest.mark.parametrize("late", [0, 2])
def test_writes_are_noticed_at_every_due_step(late: int) -> None:
    def kind() -> Any:
        teacher, calls = Net(), [0]

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] > late:
                with torch.no_grad():
                    for p, q in zip(teacher.parameters(), model.parameters(), strict=True):
                        p.lerp_(q, 0.1)
            return cross_entropy(model, batch) + (model(batch[0]) - teacher(batch[0])).pow(2).mean()

        return Net(), loss, lambda: [p.tolist() for p in teacher.parameters()]

    assert trained(kind, "decorator") == trained(kind)


def test_a_graph_that_saved_a_tensor_can_still_be_walked_back() -> None:
    """Truncated backpropagation keeps a graph over a step: no version counter has moved."""
    hidden = torch.ones(6, requires_grad=True)
    state = hidden * 1.0

    def kind() -> Any:
        def note(x: Tensor) -> Tensor:
            with torch.no_grad():
                state.add_(0.0)
            return x + state.detach()

        return Net(note), cross_entropy, lambda: None

    trained(kind)
    later = state.exp().square()
    version = state._version
    trained(kind, "decorator", steps=1)
    assert state._version == version + 1  # the training's own write
    assert later.sum().isfinite()


class LazyMean(nn.Module):
    """Makes a buffer when it is called first, and gives it another tensor at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(5))
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
        return self.second(h - self.mean)


def lazy_mean() -> Any:
    model = LazyMean()
    return model, cross_entropy, lambda: model.mean.tolist()


def test_a_buffer_that_a_step_makes_is_not_there_where_the_step_is_evaluated_again() -> None:
    sink = MemorySink()
    assert trained(lazy_mean, "decorator", sink=sink) == trained(lazy_mean)
    cosines = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
    assert cosines == pytest.approx([1.0] * 4, abs=1e-12)


def test_a_buffer_of_later_is_seen_where_not_all_are_known() -> None:
    model, _, _ = lazy_mean()
    model(torch.ones(2, 6))
    for whole in (False, True):
        with Exchanged(model, {}, whole=whole).here():
            assert hasattr(model, "mean") is not whole
    assert hasattr(model, "mean")
