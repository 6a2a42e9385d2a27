"""Other threads use the watched model, and draw, while probes evaluate it: they notice nothing."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.replay.isolation import evaluation, isolated
from eqtoolbox.replay.reach.names import Names, Namespace
from eqtoolbox.replay.reach.neighbours import reached_by_others
from eqtoolbox.replay.reach.reach import Reach
from eqtoolbox.replay.streams import alone
from eqtoolbox.replay.thread.tables import Exchanged, ThreadTable
from eqtoolbox.symmetry.audit import audit
from tests.neutrality.belongings import Batch, cross_entropy
from tests.neutrality.test_memory import Gradient, watched_steps
from tests.neutrality.test_python_state import batches

PROBES = {
    "conservation": {}, "curvature": {"k": 1, "max_matvecs": 6},
    "equivariance": {"symmetries": ["flip"], "samples": 2},
}  # fmt: skip


class Telling(nn.Module):
    """Tells by its output whether it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.norm.momentum = 0.0  # calls in training mode leave its statistics alone

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.flatten(1)))
        return self.second(torch.tanh(h)) * (2.0 if self.training else 1.0)


@contextmanager
def beside(body: Callable[[], Any]) -> Iterator[list[Any]]:
    """Scope in which another thread does this again and again; the list has what came of it."""
    found: list[Any] = []
    done = threading.Event()

    def goes_on() -> None:
        while not done.is_set():
            found.append(body())
            time.sleep(0.0002)

    thread = threading.Thread(target=goes_on)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def watched(model: nn.Module, loss_fn: Any = cross_entropy, steps: int = 4) -> None:
    """A training with probes at every step that leaves the parameters where they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = eq.attach(model, optimizer, probes=PROBES, schedule=1, budget=None)
    loss_fn = monitor.loss(loss_fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for x, y in batches(steps):
            loss_fn(model, (x.view(8, 1, 2, 3), y)).backward()
            optimizer.step()
    monitor.close()


def stepped(model: nn.Module, loss_fn: Any, optimizer: torch.optim.Optimizer) -> None:
    """One step of a training."""
    loss_fn(model, next(batches(1))).backward()
    optimizer.step()


def test_a_thread_that_calls_the_model_finds_its_own_parameters_buffers_and_flags() -> None:
    torch.manual_seed(0)
    model, x = Telling(), torch.randn(4, 6)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = {name: id(t) for name, t in named.items()}

    def look() -> Any:
        with torch.no_grad():
            value = model(x).tolist()
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return value, {name: id(t) for name, t in now.items()} == known, model.training

    first = look()
    with beside(look) as found:
        watched(model)
    assert len(found) > 5
    assert all(one == first for one in found)
    assert first[1:] == (True, True)
    assert all(type(m._parameters) is dict and type(m._buffers) is dict for m in model.modules())
    assert "training" not in vars(nn.Module)


def test_an_exchange_for_all_threads_is_noticed() -> None:
    """What the test above looks at: torch's own way shows exchanged parameters to everybody."""
    model = Telling()
    other = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    known = [id(p) for p in model.parameters()]
    with beside(lambda: [id(p) for p in model.parameters()] == known) as found:
        for _ in range(200):
            torch.func.functional_call(model, other, torch.ones(2, 6))
    assert not all(found)


def test_threads_exchange_the_parameters_of_one_model_each_for_itself() -> None:
    model, inputs = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    barrier, found = threading.Barrier(2), {}

    def evaluate(value: float) -> None:
        exchanged = Exchanged(model, {"weight": torch.full((1, 2), value)})
        with isolated(model):
            for _ in range(50):
                barrier.wait(10)
                with exchanged.here():
                    barrier.wait(10)
                    found.setdefault(value, set()).add(model(inputs).item())

    threads = [threading.Thread(target=evaluate, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1.0: {2.0}, 2.0: {4.0}}
    assert type(model._parameters) is dict


def test_a_table_is_a_dict_whose_entries_depend_on_who_asks() -> None:
    live = {"weight": 1, "bias": 2}
    table, own = ThreadTable(live), {"weight": 3, "bias": 2}
    table.begin(own)
    table["more"] = 4
    assert (dict(table), len(table), "more" in table) == ({**own}, 3, True)
    assert [*table.items()] == [*own.items()]
    with beside(lambda: (dict(table), table.get("more"))) as found:
        time.sleep(0.01)
    assert all(one == ({"weight": 1, "bias": 2}, None) for one in found)
    assert table.end()
    assert live == {"weight": 1, "bias": 2}


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_streams_that_another_thread_draws_from_are_not_wound_back(name: str) -> None:
    """Though they move while the loss is caught: that thread drew, and the loss did not."""
    draw = np.random.rand if name == "numpy" else lambda: torch.rand(1).item()
    seed = np.random.seed if name == "numpy" else torch.manual_seed

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        time.sleep(0.002)  # the other thread draws meanwhile
        return F.cross_entropy(model(batch[0]), batch[1])

    model = Telling()
    seed(0)
    with beside(draw) as drawn:
        watched(model, loss)
    seed(0)
    assert drawn == [draw() for _ in drawn]


@contextmanager
def lives(make: type[threading.Thread] = threading.Thread) -> Iterator[None]:
    """Scope in which another thread lives, and waits."""
    done = threading.Event()
    thread = make(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def drawing(draw: Callable[[], float], watch: bool) -> list[float]:
    """Losses of a training that draws from NumPy's global stream."""
    np.random.seed(0)
    model, losses = nn.Linear(6, 3), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        losses.append(draw())
        return cross_entropy(model, batch) * (1 + losses[-1])

    monitor = eq.attach(model, optimizer, probes=PROBES, schedule=1, budget=None) if watch else None
    for _ in range(3):
        stepped(model, monitor.loss(loss_fn) if monitor else loss_fn, optimizer)
    if monitor is not None:
        monitor.close()
    return [*losses[:3], np.random.rand()]


def _as_libraries() -> float:
    """As scikit-learn and SciPy find the global generator."""
    generator = np.random.mtrand._rand
    assert isinstance(generator, np.random.RandomState)
    return float(generator.rand())


def test_a_library_that_draws_from_numpys_generator_beside_a_thread_is_heard() -> None:
    with lives():
        assert drawing(_as_libraries, watch=True)[-1] == drawing(_as_libraries, watch=False)[-1]


HELD = np.random.mtrand._rand


class Bar(threading.Thread):
    """As that of a progress bar: it shows what it is told, and draws nothing."""


Bar.__module__ = "tqdm._monitor"


def test_a_thread_of_a_progress_bar_is_no_reason_to_listen() -> None:
    def held() -> float:
        return float(HELD.rand())

    with lives(Bar):
        assert alone()
        assert drawing(held, watch=True)[-1] == drawing(held, watch=False)[-1]
    with lives():
        assert not alone()
        assert drawing(held, watch=True)[-1] != drawing(held, watch=False)[-1], "it is not heard"


def test_a_thread_that_reaches_a_whole_module_shares_each_of_its_names() -> None:
    module = {"mine": 1, "theirs": 2}
    whole, one = Namespace(module, None), Names(module, None, ["mine"])
    mine, (shared,) = one.divided(whole.marks())
    assert not mine
    assert shared.marks() == one.marks()
    assert one.divided(Namespace({**module}, None).marks())[1] == [], (
        "another module's names are not"
    )


def test_a_whole_module_leaves_alone_what_a_thread_names_in_it() -> None:
    module: dict[str, Any] = {"mine": 1, "theirs": 2}
    (mine,), (other,) = Namespace(module, None).divided(
        Names(module, None, ["theirs", "new"]).marks()
    )
    module.update(mine=3, theirs=4, new=5, made=6)
    assert mine.restore({})
    assert module == {"mine": 1, "theirs": 4, "new": 5}
    assert other.moved({}), "and it is told that it has changed"
    module["theirs"] = 2
    assert not other.moved({})
    (whole,), _ = Namespace(module, None).divided(set())
    module["theirs"] = 7
    assert whole.restore({})
    assert module["theirs"] == 2


def test_a_thread_that_outlives_the_loss_is_refused_by_name() -> None:
    go = threading.Event()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        threading.Thread(target=go.wait, name="courier", daemon=True).start()
        return cross_entropy(model, batch)

    model = Telling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = eq.attach(model, optimizer, probes={"curvature": {"k": 1}}, schedule=1, budget=None)
    loss_fn = monitor.loss(loss)
    with pytest.warns(RuntimeWarning, match=r"starts a thread \(courier\) that goes on after it"):
        stepped(model, loss_fn, optimizer)
    go.set()
    monitor.close()


def test_a_tensor_that_keeps_a_graph_is_refused_before_it_is_written() -> None:
    weight = torch.ones(3, requires_grad=True)
    held = [weight * 2]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        held[0].mul_(1.1)
        return cross_entropy(model, batch) + 0.0 * held[0].sum().detach()

    model = Telling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = eq.attach(model, optimizer, probes={"curvature": {"k": 1}}, schedule=1, budget=None)
    loss_fn = monitor.loss(loss)
    with pytest.warns(RuntimeWarning, match="a tensor that keeps a graph of the training"):
        stepped(model, loss_fn, optimizer)
    monitor.close()
    assert held[0].tolist() == pytest.approx([2.2] * 3)


def turned(model: nn.Module) -> dict[str, float]:
    """The errors that an audit of the model finds, by the names of the claims."""
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return {s.symmetry.name: s.result.relative_error for s in audit(model, x).scores if s.result}


def test_what_holds_in_a_thread_holds_in_the_isolation_that_it_opens() -> None:
    """Flags and tables are shown to a thread, whether its replay has begun or not."""
    model = Telling()
    with beside(lambda: model.training) as seen, evaluation(model):
        exchanged = Exchanged(model, {"norm.running_mean": torch.ones(5)})
        with exchanged.here(), isolated(model):
            assert not model.training
            assert model.norm.running_mean.sum() == 5
        while not seen:
            time.sleep(0.001)
    assert all(seen)


def test_an_audit_finds_the_same_beside_a_living_thread() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1))
    alone = turned(model)
    with beside(lambda: model.training) as seen:
        assert turned(model) == alone
    assert all(seen)
    assert turned(model.train(False)) == alone


def test_nothing_of_a_replay_is_left_beside_a_living_thread() -> None:
    with beside(lambda: None):
        alive, refs = watched_steps(150, Gradient())
    assert not [r for r in refs if r() is not None]
    assert alive[0] == alive[-1]


class Told(Tensor):
    """A tensor that tells when somebody looks into it."""

    looks: ClassVar[list[str]] = []
    grad = property(lambda self: Told.looks.append("grad"))  # type: ignore[assignment]
    grad_fn = property(lambda self: Told.looks.append("graph"))  # type: ignore[assignment]
    _version = property(lambda self: Told.looks.append("version"))  # type: ignore[assignment]

    def detach(self) -> Tensor:
        Told.looks.append("entries")
        return super().detach()


def test_tensors_of_another_thread_are_known_without_looking_into_them() -> None:
    """It may be in a backward, in C++ and without Python's lock: a look would be a race."""
    held = [torch.ones(3).as_subclass(Told)]
    with beside(lambda: held[0].shape) as seen:
        while not seen:
            time.sleep(0.001)
        Told.looks.clear()
        marks = set().union(*reached_by_others().values())
        assert {id(held), id(held[0])} <= marks
        assert Told.looks == []
    assert {id(held), id(held[0])} <= {m for slot in Reach([held]).slots for m in slot.marks()}
    assert Told.looks, "an own walk does look"
