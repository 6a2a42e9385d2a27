"""Chains: a state behind things of whatever kinds that hold each other, in a loss that uses it.

python -m tests.neutrality.chains FIRST LAST
"""

import array
import collections
import dataclasses
import functools
import itertools
import random
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.belongings import Batch, Net, Object, Slotted, cross_entropy
from tests.neutrality.package import state as module
from tests.neutrality.test_python_state import trained

Held = tuple[Any, Callable[[Any], Any]]  # what holds a thing, and how to reach it again
Pair = collections.namedtuple("Pair", "name value")
KEPT: list[Any] = []


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any


class Weak:
    """A class whose things can be held weakly, around anything."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


def _slotted(x: Any) -> Held:
    held = Slotted()
    held.total = x
    return held, lambda h: h.total


def _of_class(x: Any) -> Held:
    return type("Holder", (), {"value": x, "__module__": __name__}), lambda h: vars(h)["value"]


def _of_metaclass(x: Any) -> Held:
    meta = type("Meta", (type,), {"value": Weak(x), "__module__": __name__})
    return meta("Made", (), {"__module__": __name__}), lambda h: type(h).value.value


def _closed(x: Any) -> Held:
    return lambda: x, lambda h: h()


def _default(x: Any) -> Held:
    def held(value: Any = x) -> Any:
        return value

    return held, lambda h: h()


def _keyword(x: Any) -> Held:
    def held(*, value: Any = x) -> Any:
        return value

    return held, lambda h: h()


def _attribute(x: Any) -> Held:
    def held() -> Any:
        return held.value

    held.value = x
    return held, lambda h: h()


def _weakly(x: Any) -> Held:
    KEPT.append(Weak(x))
    return weakref.ref(KEPT[-1]), lambda h: h().value


def _weak_values(x: Any) -> Held:
    KEPT.append(Weak(x))
    return weakref.WeakValueDictionary(a=KEPT[-1]), lambda h: h["a"].value


def _array(x: Any) -> Held:
    held = np.empty((1, 2), object)
    held[0, 1] = x
    return held, lambda h: h[0, 1]


def _module(x: Any) -> Held:
    module.HELD = x
    return module, lambda h: h.HELD


def _dispatched(x: Any) -> Held:
    held = functools.singledispatch(lambda _: None)
    held.register(int, lambda _: x)
    return held, lambda h: h(1)


def _of_property(x: Any) -> Held:
    kind = type("Shown", (), {"value": property(lambda _: x), "__module__": __name__})
    return kind(), lambda h: h.value


def _of_module(x: Any) -> Held:
    held = nn.Identity()
    held.value = [x]
    return nn.ModuleDict({"a": held}), lambda h: h["a"].value[0]


def _of_tensor(x: Any) -> Held:
    held: Any = torch.zeros(2)
    held.value = x
    return held, lambda h: h.value


def _made(x: Any) -> Held:
    return collections.defaultdict(lambda: x), lambda h: h["b"]


def _of_generator(x: Any) -> Held:
    kind = type("Dice", (random.Random,), {"__module__": __name__})
    held: Any = kind(0)
    held.value = x
    return held, lambda h: h.value


HOLDERS: dict[str, Callable[[Any], Held]] = {
    "list": lambda x: ([0, x], lambda h: h[1]),
    "dict": lambda x: ({"a": x}, lambda h: h["a"]),
    "tuple": lambda x: ((0, x), lambda h: h[1]),
    "named tuple": lambda x: (Pair("a", x), lambda h: h.value),
    "deque": lambda x: (collections.deque([x]), lambda h: h[0]),
    "ordered": lambda x: (collections.OrderedDict(a=x), lambda h: h["a"]),
    "chain map": lambda x: (collections.ChainMap({}, {"a": x}), lambda h: h["a"]),
    "object": lambda x: (Object(value=x), lambda h: h.value),
    "frozen": lambda x: (Frozen(x), lambda h: h.value),
    "slots": _slotted,
    "namespace": lambda x: (types.SimpleNamespace(value=x), lambda h: h.value),
    "method": lambda x: (Weak(x).get, lambda h: h()),
    "class": _of_class,
    "metaclass": _of_metaclass,
    "closure": _closed,
    "default": _default,
    "keyword": _keyword,
    "attribute": _attribute,
    "partial": lambda x: (functools.partial(lambda y: y, x), lambda h: h()),
    "partial keyword": lambda x: (functools.partial(lambda y: y, y=x), lambda h: h()),
    "reference": _weakly,
    "weak values": _weak_values,
    "proxy": lambda x: (types.MappingProxyType({"a": x}), lambda h: h["a"]),
    "array": _array,
    "module": _module,
    "dispatch": _dispatched,
    "property": _of_property,
    "nn.Module": _of_module,
    "tensor": _of_tensor,
    "factory": _made,
    "generator": _of_generator,
    "getter": lambda x: ({"a": x}.__getitem__, lambda h: h("a")),
    "values": lambda x: ({"a": x}.values(), lambda h: next(iter(h))),
}


def _number(x: Any) -> float:
    x.calls += 1
    return float(x.calls)


def _rows(x: Any) -> float:
    x.append(1)
    return float(len(x))


def _mean(x: Any) -> float:
    x.add_(1.0)
    return float(x.sum())


def _numbers(x: Any) -> float:
    x[0] += 1
    return float(x[0])


def _table(x: Any) -> float:
    x[len(x)] = 1
    return float(len(x))


def _drawn(x: Any) -> float:
    return float(torch.rand((), generator=x))


def _random(x: Any) -> float:
    return float(x.random())


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], float], Callable[[Any], Any]]] = {
    "object": (lambda: Object(calls=0), _number, vars),
    "list": (list, _rows, list),
    "dict": (dict, _table, dict),
    "tensor": (lambda: torch.zeros(3), _mean, torch.Tensor.tolist),
    "array": (lambda: np.zeros(3), _numbers, np.ndarray.tolist),
    "bytes": (lambda: array.array("d", [0.0]), _numbers, list),
    "torch generator": (lambda: torch.Generator().manual_seed(1), _drawn, _drawn),
    "numpy generator": (lambda: np.random.default_rng(1), _random, _random),
    "python generator": (lambda: random.Random(1), _random, _random),
    "iterator": (lambda: iter([float(k) for k in range(10**4)]), next, next),
    "zip": (lambda: zip(iter(range(10**4)), strict=False), lambda x: next(x)[0], next),
    "rows": (lambda: (float(k) for k in range(10**6)), next, next),
    "cycle": (lambda: itertools.cycle([1.0, 2.0, 3.0]), next, next),
    "counter": (lambda: itertools.count().__next__, lambda x: x(), lambda x: x()),
}  # fmt: skip


def chain(seed: int) -> tuple[Callable[[], Any], str]:
    """A training whose loss reaches a state through one to four holders; and what they are."""
    dice = random.Random(seed)
    kind = dice.choice([*STATES])
    names = dice.sample([*HOLDERS], dice.randint(1, 4))

    def make() -> Any:
        start, use, look = STATES[kind]
        state = start()
        held, ways = state, []
        for name in names:
            held, way = HOLDERS[name](held)
            ways.append(way)

        def reached(held: Any) -> Any:
            for way in reversed(ways):
                held = way(held)
            return held

        def close(held: Any) -> Any:
            def loss(model: nn.Module, batch: Batch) -> Tensor:
                return cross_entropy(model, batch) * (1 + 0.01 * float(use(reached(held))))

            return loss

        return Net(), close(held), lambda: look(state)

    return make, f"{kind} in {', in '.join(names)}"


def difference(seed: int) -> str:
    """What is wrong with a chain; empty where it is kept, or refused and said."""
    make, what = chain(seed)
    sink = MemorySink()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        watched = trained(make, "decorator", sink=sink, steps=3)
    refused = [str(w.message) for w in seen if "the loss uses" in str(w.message)]
    if watched != trained(make, steps=3):
        return f"{what}: another training; {refused}"
    cosines = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
    if not refused and (not cosines or cosines[0] < 0.99999):
        return f"{what}: neither measured nor refused: {cosines} {[str(w.message) for w in seen]}"
    return ""


def main() -> None:
    first, last = map(int, sys.argv[1:])
    found = [text for text in map(difference, range(first, last)) if text]
    print(*found, f"{len(found)} of {last - first} differ", sep="\n")


if __name__ == "__main__":
    main()
