"""Losses and models that keep state in plain Python: one row a kind, and how to look at it."""

import array
import collections
import dataclasses
import functools
import io
import os
import random
import threading
import types
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUNT = 0
TABLE: dict[str, Any] = {}
LOCAL = threading.local()
VARIABLE: ContextVar[int] = ContextVar("variable", default=0)
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Two layers that call `note` on what comes in."""

    def __init__(self, note: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.note = note

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.note(x))))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Object:
    """Whatever attributes it is given."""

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)


class Slotted:
    __slots__ = ("__hidden", "total")

    def __init__(self) -> None:
        self.total, self.__hidden = 0.0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.__hidden += 1
        self.total += float(x.mean())
        return x * (1 + 0.01 * self.__hidden)


@dataclasses.dataclass
class Mean:
    value: Tensor
    count: int = 0


class Counted(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x * (1 + 0.01 * Counted.calls))


class Metric(nn.Module):
    """As torchmetrics keep theirs: plain tensors and lists, updated by calls."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.rows = torch.zeros(()), []
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x.detach().sum()
        self.seen += len(x)
        self.rows.append(x.detach().mean())
        return x


def _case(make: Callable[[], tuple[Any, Any, Callable[[], Any]]]) -> Any:
    KINDS[make.__name__.strip("_")] = make
    return make


KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[], Any]]]] = {}


def _noting(note: Callable[[Tensor], Any], look: Callable[[], Any]) -> Any:
    return Net(note), cross_entropy, look


@_case
def list_of_numbers() -> Any:
    seen: list[float] = []
    return _noting(lambda x: (seen.append(float(x.mean())), x * (1 + 0.1 * len(seen)))[1],
                   lambda: list(seen))  # fmt: skip


@_case
def list_of_tensors_with_graphs() -> Any:
    model = Net()
    model.losses = []
    model.note = lambda x: (model.losses.append(model.first(x).square().mean()), x)[1]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch) + 0.1 * sum(model.losses)
        model.losses.clear()
        return value

    return model, loss, lambda: len(model.losses)


@_case
def nested_containers() -> Any:
    table = {"a": [{"n": 0}], "b": (collections.Counter(), [])}

    def note(x: Tensor) -> Tensor:
        table["a"][0]["n"] += 1
        table["b"][0]["calls"] += 1
        table["b"][1].append(len(table["b"][1]))
        return x * (1 + 0.01 * table["a"][0]["n"])

    return _noting(note, lambda: repr(table))


@_case
def a_set() -> Any:
    seen: set[Any] = set()
    return _noting(lambda x: (seen.add(len(seen)), x * (1 + 0.01 * len(seen)))[1],
                   lambda: set(seen))  # fmt: skip


@_case
def deque_of_tensors() -> Any:
    window = collections.deque(maxlen=3)

    def note(x: Tensor) -> Tensor:
        window.append(x.detach().mean(0))
        return x - torch.stack([*window]).mean(0)

    return _noting(note, lambda: [t.tolist() for t in window])


@_case
def ordered_and_default_dicts() -> Any:
    order, counts = collections.OrderedDict(a=0, b=1), collections.defaultdict(int)

    def note(x: Tensor) -> Tensor:
        order.move_to_end(next(iter(order)))
        counts[len(counts)] += 1
        return x * (1 + 0.01 * len(counts))

    return _noting(note, lambda: (list(order), dict(counts)))


@_case
def tensor_written_in_place() -> Any:
    mean = torch.zeros(6)

    def note(x: Tensor) -> Tensor:
        mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - mean

    return _noting(note, lambda: (mean.tolist(), mean.dtype, mean.requires_grad))


@_case
def tensor_written_behind_its_back() -> Any:
    mean = torch.zeros(6)

    def note(x: Tensor) -> Tensor:
        mean.data.add_(x.detach().mean(0).float(), alpha=0.1)
        mean.numpy()[0] += 0.5
        return x - mean

    return _noting(note, lambda: mean.tolist())


@_case
def tensor_given_other_memory() -> Any:
    held = Object(mean=torch.zeros(6), other=torch.zeros(1))
    first = held.mean

    def note(x: Tensor) -> Tensor:
        held.mean.data = 0.9 * held.mean + x.detach().mean(0)
        held.other.set_(torch.full((2,), float(held.mean[0])))
        return x - held.mean

    return _noting(
        note, lambda: (held.mean.tolist(), held.mean is first, held.other.tolist(), first.dtype)
    )


@_case
def large_tensor() -> Any:
    bank = torch.zeros(2**19)

    def note(x: Tensor) -> Tensor:
        bank.add_(0.01)
        bank[: x.numel()] = x.detach().flatten()
        return x + bank[-1]

    return _noting(note, lambda: bank.sum().item())


@_case
def numpy_arrays() -> Any:
    mean, names = np.zeros(6, dtype=np.float32), np.array([None, None], dtype=object)

    def note(x: Tensor) -> Tensor:
        mean[:] = 0.9 * mean + 0.1 * x.detach().numpy().mean(0)
        names[0] = float(mean[0])
        return x - torch.from_numpy(mean.copy())

    return _noting(note, lambda: (mean.tolist(), names.tolist()))


@_case
def bytes_and_arrays() -> Any:
    one, two, text = bytearray(1), array.array("d", [0.0]), io.StringIO()

    def note(x: Tensor) -> Tensor:
        one[0] = (one[0] + 1) % 256
        two[0] += 0.5
        text.write("call\n")
        return x * (1 + 0.01 * one[0] + 0.01 * two[0])

    return _noting(note, lambda: (bytes(one), two[0], text.getvalue()))


@_case
def helper_object() -> Any:
    helper = Object(mean=0.0)

    def note(x: Tensor) -> Tensor:
        helper.mean = 0.9 * helper.mean + 0.1 * float(x.mean())
        return x - helper.mean

    return _noting(note, lambda: vars(helper))


@_case
def object_with_slots() -> Any:
    slotted = Slotted()
    return _noting(slotted, lambda: (slotted.total, slotted._Slotted__hidden))


@_case
def a_dataclass() -> Any:
    mean = Mean(torch.zeros(6))

    def note(x: Tensor) -> Tensor:
        mean.value, mean.count = mean.value + x.detach().mean(0), mean.count + 1
        return x - mean.value / mean.count

    return _noting(note, lambda: (mean.value.tolist(), mean.count))


@_case
def class_attribute() -> Any:
    Counted.calls = 0
    return Counted(), cross_entropy, lambda: Counted.calls


@_case
def module_global() -> Any:
    global COUNT
    COUNT = 0
    TABLE.clear()

    def note(x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        TABLE[COUNT] = float(x.mean())
        return x * (1 + 0.01 * COUNT)

    return _noting(note, lambda: (COUNT, dict(TABLE)))


@_case
def closure_variable() -> Any:
    calls = 0

    def note(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * (1 + 0.01 * calls)

    return _noting(note, lambda: calls)


@_case
def attributes_made_on_the_way() -> Any:
    model = Net()

    def note(x: Tensor) -> Tensor:
        model.last, model.calls = x, getattr(model, "calls", 0) + 1
        return x * (1 + 0.01 * model.calls)

    model.note = note
    return model, cross_entropy, lambda: (model.calls, model.last.dtype, sorted(vars(model)))


@_case
def thread_and_context() -> Any:
    LOCAL.calls = 0
    VARIABLE.set(0)

    def note(x: Tensor) -> Tensor:
        LOCAL.calls += 1
        VARIABLE.set(VARIABLE.get() + 1)
        return x * (1 + 0.01 * LOCAL.calls * VARIABLE.get())

    return _noting(note, lambda: (LOCAL.calls, VARIABLE.get()))


@_case
def weak_dictionary() -> Any:
    calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    model = Net()

    def note(x: Tensor) -> Tensor:
        calls[model] = calls.get(model, 0) + 1
        return x * (1 + 0.01 * calls[model])

    model.note = note
    return model, cross_entropy, lambda: dict(calls)[model]


@_case
def own_generators() -> Any:
    one, two = torch.Generator().manual_seed(3), np.random.default_rng(3)
    three, four = random.Random(3), np.random.RandomState(3)

    def note(x: Tensor) -> Tensor:
        x = x + 0.1 * torch.randn(x.shape, generator=one)
        return x * (1 + 0.01 * two.random() + 0.01 * three.random() + 0.01 * four.rand())

    return _noting(
        note,
        lambda: (one.get_state().tolist(), repr(two.bit_generator.state), three.getstate(),
                 repr(four.get_state())),
    )  # fmt: skip


@_case
def iterator_over_a_sequence() -> Any:
    held = Object(it=iter([0.01 * k for k in range(1000)]), both=(iter(range(1000)), "name"))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1 + next(held.it) + next(held.both[0]))

    return Net(), loss, lambda: (next(held.it), next(held.both[0]))


@_case
def stateful_loss() -> Any:
    class Average:
        def __init__(self) -> None:
            self.mean = torch.zeros(())

        def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
            loss = cross_entropy(model, batch)
            self.mean = 0.9 * self.mean + 0.1 * loss.detach()
            return loss / (1 + self.mean)

    loss = Average()
    return Net(), loss, lambda: (loss.mean.item(), loss.mean.dtype)


@_case
def partial_and_method() -> Any:
    class Trainer:
        def __init__(self) -> None:
            self.steps: list[float] = []

        def loss(self, history: list[int], model: nn.Module, batch: Batch) -> Tensor:
            loss = cross_entropy(model, batch) * (1 + 0.01 * len(self.steps) + len(history))
            self.steps.append(float(loss.detach()))
            history.append(1) if len(history) < 2 else None
            return loss

    trainer, history = Trainer(), []
    return Net(), functools.partial(trainer.loss, history), lambda: (trainer.steps, history)


@_case
def metric_in_the_loss() -> Any:
    metric = Metric()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1 + 0.01 * float(metric(batch[0]).mean()))

    return Net(), loss, lambda: (metric.total.item(), metric.seen.item(), len(metric.rows))


@_case
def teacher_moved_in_the_loss() -> Any:
    teacher = Net()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            pairs = [*zip(teacher.parameters(), model.parameters(), strict=True)]
            (one, two), (three, four) = pairs[:2]
            one.mul_(0.9).add_(two, alpha=0.1)
            three.data = 0.9 * three.data + 0.1 * four.data
            rest, live = zip(*pairs[2:], strict=True)
            torch._foreach_lerp_([*rest], [*live], 0.1)
        apart = F.mse_loss(model(batch[0]), teacher(batch[0]))
        return cross_entropy(model, batch) + apart

    return teacher_pair(teacher, loss)


def teacher_pair(teacher: nn.Module, loss: Any) -> Any:
    """A model that starts where its teacher does."""
    model = Net()
    model.load_state_dict(teacher.state_dict())
    return model, loss, lambda: [p.tolist() for p in teacher.parameters()]


@_case
def discriminator_frozen_and_freed() -> Any:
    other = Net()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        other.requires_grad_(False)
        other.eval()
        value = cross_entropy(model, batch) + other(batch[0]).mean() * 0
        other.requires_grad_(True)
        other.weights = list(other.parameters())
        return value

    return Net(), loss, lambda: ([p.requires_grad for p in other.parameters()], other.training)


class Hostile(dict):  # type: ignore[type-arg]
    """A dict whose own methods are not what they are of a dict."""

    def _never(self, *_: Any) -> Any:
        raise AssertionError("a replay calls no method of the user's")

    clear = update = values = items = keys = __iter__ = _never


@_case
def dict_with_methods_of_its_own() -> Any:
    table = Hostile()

    def note(x: Tensor) -> Tensor:
        table[len(table)] = 1
        return x * (1 + 0.01 * len(table))

    return _noting(note, lambda: len(table))


@_case
def attribute_of_a_parameter() -> Any:
    model = Net()
    weight: Any = model.first.weight
    weight.calls = 0

    def note(x: Tensor) -> Tensor:
        weight.calls += 1
        return x * (1 + 0.01 * weight.calls)

    model.note = note
    return model, cross_entropy, lambda: weight.calls


@_case
def module_of_the_users() -> Any:
    helper: Any = types.ModuleType("helper")
    helper.__file__, helper.COUNT, helper.STATE = __file__, 0, {"seen": []}

    def note(x: Tensor) -> Tensor:
        helper.COUNT += 1
        helper.STATE["seen"].append(helper.COUNT)
        return x * (1 + 0.01 * len(helper.STATE["seen"]))

    return _noting(note, lambda: (helper.COUNT, helper.STATE["seen"]))


@_case
def limited_cache() -> Any:
    @functools.lru_cache(maxsize=2)
    def table(key: int) -> list[float]:
        return [0.0]

    def note(x: Tensor) -> Tensor:
        table(1)[0] += 0.1
        return x * (1 + table(1)[0])

    return _noting(note, lambda: (table(1), table.cache_info().currsize))


@_case
def environment() -> Any:
    os.environ["EQTOOLBOX_TEST_CALLS"] = "0"

    def note(x: Tensor) -> Tensor:
        os.environ["EQTOOLBOX_TEST_CALLS"] = str(int(os.environ["EQTOOLBOX_TEST_CALLS"]) + 1)
        return x * (1 + 0.01 * int(os.environ["EQTOOLBOX_TEST_CALLS"]))

    return _noting(note, lambda: os.environ.pop("EQTOOLBOX_TEST_CALLS"))


@_case
def another_optimizer_steps_in_the_loss() -> Any:
    other = Net()
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        optimizer.zero_grad()
        cross_entropy(other, batch).backward()
        optimizer.step()
        schedule.step()
        return cross_entropy(model, batch) + 0.1 * other(batch[0]).detach().mean()

    return (
        Net(),
        loss,
        lambda: (
            [p.tolist() for p in other.parameters()],
            [p.grad.tolist() for p in other.parameters() if p.grad is not None],
            [(s["step"].item(), s["exp_avg"].tolist()) for s in optimizer.state.values()],
            optimizer.param_groups[0]["lr"],
            schedule.last_epoch,
        ),
    )


@_case
def hidden_state_of_a_recurrent_net() -> Any:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRUCell(6, 8), nn.Linear(8, 3)
            self.hidden: Tensor = torch.zeros(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self.cell(x, self.hidden.detach())
            return self.out(self.hidden)

    model = Recurrent()
    return model, cross_entropy, lambda: (model.hidden.tolist(), model.hidden.dtype)
