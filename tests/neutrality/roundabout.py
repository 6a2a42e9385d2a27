"""State that a loss reaches in a roundabout way: one row a way, as in `belongings`."""

import collections
import ctypes
import decimal
import enum
import functools
import itertools
import logging
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.neutrality.package.state as state
from tests.neutrality import package
from tests.neutrality.belongings import Batch, Net, Object, cross_entropy

KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[], Any]]]] = {}
KEPT: list[Any] = []  # what rows hold on to that is only weakly held elsewhere


def _case(make: Callable[[], tuple[Any, Any, Callable[[], Any]]]) -> Any:
    KINDS[make.__name__] = make
    return make


def _times(factor: Callable[[], Any], look: Callable[[], Any]) -> Any:
    """A loss times 1 + 0.01 what `factor` says at each call."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1 + 0.01 * float(factor()))

    return Net(), loss, look


def _key(model: nn.Module) -> float:
    return round(float(next(model.parameters()).detach().sum()), 6)


# -- through names of modules ----------------------------------------------------------------------


@_case
def import_inside_the_loss() -> Any:
    state.COUNT = 0

    def factor() -> int:
        import tests.neutrality.package.state as inner

        inner.COUNT += 1
        return inner.COUNT

    return _times(factor, lambda: state.COUNT)


@_case
def name_imported_inside_the_loss() -> Any:
    state.HISTORY.clear()

    def factor() -> int:
        from tests.neutrality.package.state import HISTORY

        HISTORY.append(1)
        return len(HISTORY)

    return _times(factor, lambda: len(state.HISTORY))


@_case
def module_of_a_package() -> Any:
    state.COUNT = 0

    def factor() -> int:
        package.state.COUNT += 1
        return package.state.COUNT

    return _times(factor, lambda: state.COUNT)


@_case
def module_as_an_attribute() -> Any:
    state.COUNT = 0
    model = Net()
    model.settings = state

    def note(x: Tensor) -> Tensor:
        model.settings.COUNT += 1
        return x * (1 + 0.01 * model.settings.COUNT)

    model.note = note
    return model, cross_entropy, lambda: state.COUNT


@_case
def attribute_of_a_module_by_its_name() -> Any:
    state.COUNT, state.HELD = 0, Object(calls=0)

    def factor() -> int:
        setattr(state, "COUNT", state.COUNT + 1)  # noqa: B010
        held = getattr(state, "HELD")  # noqa: B009
        held.calls += 1
        return state.COUNT + int(held.calls)

    return _times(factor, lambda: (state.COUNT, state.HELD.calls))


@_case
def table_of_all_modules() -> Any:
    state.HELD = Object(calls=0)

    def factor() -> int:
        held = sys.modules["tests.neutrality.package.state"].HELD
        held.calls += 1
        return int(held.calls)

    return _times(factor, lambda: state.HELD.calls)


@_case
def global_made_on_the_way() -> Any:
    globals().pop("BANK", None)

    def factor() -> int:
        global BANK
        if "BANK" not in globals():
            BANK = []
        BANK.append(1)
        return len(BANK)

    return _times(factor, lambda: len(globals().get("BANK", ())))


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(logits, targets) * (1 + 0.01 * self.calls)


CRITERION: Any = F.cross_entropy


@_case
def global_that_becomes_stateful() -> Any:
    global CRITERION
    CRITERION = F.cross_entropy
    seen = [0]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return CRITERION(model(batch[0]), batch[1])

    def look() -> Any:
        return seen, getattr(CRITERION, "calls", None)

    model = Net()
    model.first.weight.register_post_accumulate_grad_hook(lambda _: _exchange(seen))
    return model, loss, look


def _exchange(seen: list[int]) -> None:
    global CRITERION
    seen[0] += 1
    if seen[0] == 1:
        CRITERION = Counting()


# -- through methods and functions -----------------------------------------------------------------


@_case
def methods_of_lists_and_generators() -> Any:
    seen: list[int] = []
    add, draw, normal = seen.append, random.Random(0).random, np.random.default_rng(0).normal
    number, deal = itertools.count().__next__, np.random.RandomState(0).rand

    def factor() -> float:
        add(1)
        return len(seen) + draw() + float(normal()) + number() + float(deal())

    return _times(factor, lambda: (len(seen), draw(), float(normal()), number(), float(deal())))


@_case
def factory_of_a_default_dict() -> Any:
    made: list[int] = []
    words: Any = collections.defaultdict(itertools.count().__next__)
    others: Any = collections.defaultdict(lambda: (made.append(1), len(made))[1])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        key = _key(model)
        return cross_entropy(model, batch) * (1 + 0.01 * (words[key] + others[key]))

    return Net(), loss, lambda: (list(words.values()), list(others.values()), len(made))


@_case
def iterators_over_iterators() -> Any:
    rows = enumerate(zip(range(10**4), map(float, range(10**4)), strict=True))
    return _times(lambda: next(rows)[1][1], lambda: next(rows))


@_case
def attribute_of_a_function() -> Any:
    def factor() -> int:
        factor.calls = getattr(factor, "calls", 0) + 1
        return factor.calls

    return _times(factor, lambda: getattr(factor, "calls", 0))


@_case
def defaults_of_a_function() -> Any:
    def step(calls: int = 0) -> int:
        step.__defaults__ = (calls + 1,)
        return calls

    return _times(step, lambda: step.__defaults__)


@_case
def property_that_is_set() -> Any:
    sets = [0]

    class Held:
        @property
        def value(self) -> int:
            return sets[0]

        @value.setter
        def value(self, new: int) -> None:
            sets[0] += new

    held = Held()

    def factor() -> int:
        held.value = 1
        return held.value

    return _times(factor, lambda: sets[0])


@_case
def cache_with_a_limit() -> Any:
    calls, keys = [0], [0]

    @functools.lru_cache(maxsize=4)
    def slow(key: int) -> int:
        calls[0] += 1
        return calls[0]

    def factor() -> int:
        keys[0] += 1
        return slow(keys[0])

    return _times(factor, lambda: (calls, keys, slow.cache_info()))


# -- through classes -------------------------------------------------------------------------------


class OnlyOne(type):
    """A metaclass that keeps one instance of each class."""

    kept: ClassVar[dict[type, Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls not in cls.kept:
            cls.kept[cls] = super().__call__(*args, **kwargs)
        return cls.kept[cls]


class Log(metaclass=OnlyOne):
    def __init__(self) -> None:
        self.calls = 0


@_case
def only_one_of_a_class() -> Any:
    OnlyOne.kept.clear()

    def factor() -> int:
        Log().calls += 1
        return int(Log().calls)

    return _times(factor, lambda: Log().calls)


@_case
def classes_that_derive_from_one() -> Any:
    class Base:
        calls = 0

    class Derived(Base):
        calls = 0

    KEPT.append(Derived)

    def factor() -> int:
        for one in Base.__subclasses__():
            one.calls += 1
        return Base.__subclasses__()[-1].calls

    return _times(factor, lambda: KEPT[-1].calls)


@_case
def member_of_an_enumeration() -> Any:
    class Phase(enum.Enum):
        WARM = 1

    class Level(enum.IntEnum):
        LOW = 1

    members: list[Any] = [Phase.WARM, Level.LOW]
    for one in members:
        one.calls = 0

    def factor() -> int:
        phase: Any = Phase.WARM
        level: Any = Level.LOW
        phase.calls, level.calls = phase.calls + 1, level.calls + 1
        return int(phase.calls + level.calls)

    return _times(factor, lambda: [one.calls for one in members])


@_case
def attributes_beside_what_a_kind_has() -> Any:
    """Classes of the program that derive from ones which a walk knows by themselves."""

    class Dice(random.Random):
        calls = 0

    class Rows(np.ndarray):
        calls = 0

    class Worker(threading.Thread):
        calls = 0

    class Adapter(logging.LoggerAdapter):  # type: ignore[type-arg]
        calls = 0

    class Table(dict):  # type: ignore[type-arg]
        __slots__ = ("calls",)

    table = Table()
    table.calls = 0
    logger = Adapter(logging.getLogger("tests"), {})
    all_of_them: list[Any] = [Dice(0), np.zeros(3).view(Rows), Worker(), logger, table]

    def factor() -> float:
        for one in all_of_them:
            one.calls += 1
        return all_of_them[0].random() + sum(one.calls for one in all_of_them)

    return _times(factor, lambda: [one.calls for one in all_of_them])


@_case
def iterator_with_slots() -> Any:
    class Numbers:
        __slots__ = ("k",)

        def __init__(self) -> None:
            self.k = 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            self.k += 1
            return self.k

    numbers = Numbers()
    return _times(lambda: next(numbers), lambda: numbers.k)


@_case
def attributes_that_are_asked_for_badly() -> Any:
    class Held:
        def __init__(self) -> None:
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            return vars(self)["table"][name]  # raises KeyError

    held = Held()

    def factor() -> int:
        held.calls += 1
        return held.calls

    return _times(factor, lambda: held.calls)


# -- through what shows something else -------------------------------------------------------------


@_case
def weak_references() -> Any:
    one, two, three = Object(calls=0), Object(calls=0), Object(calls=0)
    KEPT.extend((one, two, three))
    ref, proxy, table = weakref.ref(one), weakref.proxy(two), weakref.WeakValueDictionary(a=three)

    def factor() -> int:
        held: list[Any] = [ref(), proxy, table["a"]]
        for each in held:
            each.calls += 1
        return sum(each.calls for each in held)

    return _times(factor, lambda: (one.calls, two.calls, three.calls))


@_case
def dicts_and_bytes_shown() -> Any:
    inside: dict[str, list[int]] = {"rows": []}
    shown, values = types.MappingProxyType(inside), inside.values()
    number = bytearray(4)
    view = memoryview(number)

    def show(shown: Any, values: Any, view: Any) -> Any:
        def factor() -> int:
            shown["rows"].append(1)
            next(iter(values)).append(1)
            view[0] += 1
            return len(shown["rows"]) + int(view[0])

        return factor

    return _times(show(shown, values, view), lambda: (len(inside["rows"]), number[0]))


@_case
def keys_of_a_dict() -> Any:
    table = {Object(calls=0): "a"}

    def factor() -> int:
        for one in table:
            vars(one)["calls"] += 1
        return sum(vars(one)["calls"] for one in table)

    return _times(factor, lambda: [vars(one)["calls"] for one in table])


@_case
def arrays_of_objects_and_with_masks() -> Any:
    things = np.empty(2, object)
    things[:] = [[], {}]
    masked = np.ma.masked_array(np.zeros(40), mask=[False] * 40)

    def factor() -> int:
        things[0].append(1)
        masked[int(masked.mask.sum())] = np.ma.masked
        return len(things[0]) + int(masked.mask.sum())

    return _times(factor, lambda: (len(things[0]), int(masked.mask.sum())))


@_case
def numbers_of_c() -> Any:
    number, table = ctypes.c_int(0), (ctypes.c_double * 2)()

    def factor() -> float:
        number.value += 1
        table[1] += 0.5
        return number.value + table[1]

    return _times(factor, lambda: (number.value, list(table)))


@_case
def context_of_decimals() -> Any:
    context = decimal.Context(prec=5)

    def factor() -> int:
        context.prec += 1
        return context.prec

    return _times(factor, lambda: context.prec)


@_case
def seeds_and_loggers() -> Any:
    seeds, logger = np.random.SeedSequence(1), logging.getLogger("tests.roundabout")
    vars(logger)["calls"] = 0

    def factor() -> float:
        vars(logger)["calls"] += 1
        return float(np.random.default_rng(seeds.spawn(1)[0]).random()) + vars(logger)["calls"]

    return _times(factor, lambda: (seeds.n_children_spawned, vars(logger)["calls"]))


# -- of torch --------------------------------------------------------------------------------------


@_case
def scripted_module() -> Any:
    class Scaled(nn.Module):
        calls: int

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.rows = torch.jit.annotate(list[int], [0])
            self.total = torch.zeros(1)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.rows.append(self.calls)
            self.total += 1.0
            return self.norm(x) * (1.0 + 0.01 * self.calls + 0.01 * len(self.rows)) + self.total

    model = Net()
    model.note = torch.jit.script(Scaled())
    return model, cross_entropy, lambda: (
        model.note.calls, model.note.rows, model.note.total.tolist(),
        [b.tolist() for b in model.note.buffers()],
    )  # fmt: skip


class Numbered(torch.utils.data.Dataset[Tensor]):
    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        self.calls += 1
        return torch.tensor(float(self.calls + index))


@_case
def datasets_and_loaders() -> Any:
    data = Numbered()
    own = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(data, range(8)), batch_size=4, shuffle=True, generator=own
    )
    return _times(
        lambda: next(iter(loader)).mean() * 0.01, lambda: (data.calls, own.get_state().tolist())
    )


@_case
def distribution_that_moves() -> Any:
    normal = torch.distributions.Normal(torch.zeros(3), torch.ones(3))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        normal.loc = normal.loc + 0.1
        return cross_entropy(model, batch) - 0.1 * normal.log_prob(model(batch[0])).mean()

    return Net(), loss, lambda: normal.loc.tolist()


@_case
def groups_of_another_optimizer() -> Any:
    other = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)

    def factor() -> int:
        other.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
        return len(other.param_groups)

    return _times(factor, lambda: len(other.param_groups))
