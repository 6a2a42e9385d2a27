"""A trace: the ATen operations that one evaluation of the loss runs, and what flows between them.

Recorded by running, not by symbolic tracing: data-dependent branches, `.item()` and in-place
operations are followed as this batch takes them, and nothing of the model has to be rewritten.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.operations import Operations
from eqtoolbox.replay.thread.dispatch import Dispatch


@dataclass(frozen=True)
class Value:
    """A tensor of the trace: its number, its shape, and its entries when they are few integers."""

    number: int
    shape: tuple[int, ...]
    integers: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def each_of(given: Any) -> Iterator[Any]:
    """What an operation is given in lists, tuples and dicts, in order; there are no others.

    Example:
        >>> [*each_of((1, [2, None], {"dim": 3}))]
        [1, 2, None, 3]
    """
    if type(given) is dict:
        given = (*given.values(),)
    if type(given) not in (list, tuple):
        yield given
        return
    for one in given:
        yield from each_of(one)


def mapped(change: Callable[[Any], Any], given: Any) -> Any:
    """The same with each of them changed."""
    kind = type(given)
    if kind is dict:
        return {key: mapped(change, one) for key, one in given.items()}
    return kind([mapped(change, x) for x in given]) if kind in (list, tuple) else change(given)


@dataclass(frozen=True)
class Node:
    """One operation: `args` are as it was called, with a `Value` in place of every tensor."""

    name: str  # addmm, convolution, relu, ...; in-place ones without their underscore
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]

    @cached_property
    def inputs(self) -> list[Value]:
        return [x for x in each_of((self.args, self.kwargs)) if isinstance(x, Value)]

    def arg(self, position: int, keyword: str = "", default: Any = None) -> Any:
        """The argument at `position` or called `keyword`."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(keyword, default)


@dataclass
class Trace:
    """Operations in order that the last value depends on."""

    parameters: dict[str, Value]
    nodes: list[Node]
    output: Value | None  # of the model, where it is a single tensor
    loss: Value
    value: Tensor = field(repr=False)  # of the loss
    notes: list[str] = field(default_factory=list)
    made: Tensor | None = field(default=None, repr=False)  # the output itself
    statistics: dict[str, Value] = field(default_factory=dict)  # running ones, beside parameters
    _live: dict[tuple[int, ...], list[Node]] = field(default_factory=dict, repr=False)

    @cached_property
    def numbers(self) -> int:
        """How many all operations make."""
        return sum(made.size for node in self.nodes for made in node.outputs if made is not None)

    def live(self, *targets: Value) -> list[Node]:
        """The operations that `targets` depend on."""
        key = tuple(t.number for t in targets)
        if key not in self._live:
            self._live[key] = self._behind(set(key))
        return self._live[key]

    def _behind(self, needed: set[int]) -> list[Node]:
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(o is not None and o.number in needed for o in node.outputs):
                needed.update(v.number for v in node.inputs)
                kept.append(node)
        return kept[::-1]

    def rooted(self) -> set[int]:
        """Numbers of the values that a root is taken of, or that something is divided by."""
        found: set[int] = set()
        for node in self.nodes:
            operand = node.args[1 if node.name == "div" else 0] if node.args else None
            power = node.args[1] if node.name == "pow" and len(node.args) > 1 else None
            root = isinstance(power, (int, float)) and (power < 0 or power % 1 != 0)
            if root or node.name in ("sqrt", "rsqrt", "reciprocal", "div"):
                found.update([operand.number] if isinstance(operand, Value) else ())
        return found


class Tracer(Dispatch):  # type: ignore[no-untyped-call]
    """Numbers tensors as they appear; a tensor written in place gets a new number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: Any = WeakIdKeyDictionary()
        self.nodes: list[Node] = []
        self.notes: list[str] = []
        self.count = 0

    def value(self, tensor: Tensor, new: bool = False) -> Value:
        if new or tensor not in self.values:
            few = not tensor.is_floating_point() and tensor.numel() <= 2**20
            integers = tensor.detach() if few and not tensor.is_complex() else None
            self.values[tensor] = Value(self.count, tuple(tensor.shape), integers)
            self.count += 1
        found: Value = self.values[tensor]
        return found

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf
        with torch._C.DisableTorchFunction():  # it was heard by its name in Python
            seen_args, seen_kwargs = mapped(read, (args, kwargs))
            result = self.run(func, args, kwargs)
            made = [x if isinstance(x, Tensor) else None for x in each_of(result)]
            outputs = tuple(None if x is None else self.value(x, new=True) for x in made)
        name = func._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            note = "control flow or a number depends on the data: analysed as this batch takes it"
            if note not in self.notes:
                self.notes.append(note)
        in_place = name.endswith("_") and not name.startswith("__")
        self.nodes.append(
            Node(name.rstrip("_") if in_place else name, seen_args, seen_kwargs, outputs)
        )
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's results."""
        return func(*args, **kwargs)


def trace(
    run: Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]],
    params: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor] | None = None,
) -> Trace:
    """Evaluate `run({**params, **statistics}) -> (output, loss)` once and return what ran.

    Example:
        >>> found = trace(lambda p: (None, (p["w"] @ p["w"]).relu()), {"w": torch.ones(3)})
        >>> [node.name for node in found.nodes]
        ['dot', 'relu', 'detach']
    """
    leaves = {n: leaf(p.detach()) for n, p in params.items()}
    return recorded(run, leaves, Tracer(), statistics)


def recorded(
    run: Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]],
    leaves: dict[str, Tensor],
    tracer: Tracer,
    statistics: Mapping[str, Tensor] | None = None,
) -> Trace:
    """What `run` does with these leaves, as a tracer sees it."""
    with torch.enable_grad(), Operations(), tracer:
        named = {n: tracer.value(p) for n, p in leaves.items()}
        beside = {n: tracer.value(b) for n, b in (statistics or {}).items()}
        versions = {n: p._version for n, p in leaves.items()}
        output, loss = run({**leaves, **(statistics or {})})
        written = [n for n, p in leaves.items() if p._version != versions[n]]
        given = output if isinstance(output, Tensor) else None
        made = None if given is None else tracer.value(given)
        final = tracer.value(loss)
    if written:
        tracer.notes.append(
            f"the forward pass writes to parameters in place ({', '.join(written)}): what it "
            "reads of them afterwards was taken as fixed"
        )
    tracer.notes += _uses(named, tracer.nodes)
    seen = None if given is None else given.detach()
    return Trace(named, tracer.nodes, made, final, loss.detach(), tracer.notes, seen, beside)


def _uses(named: Mapping[str, Value], nodes: list[Node]) -> Iterator[str]:
    """Notes on parameters that are read twice or not at all."""
    counts = Counter(v.number for node in nodes for v in node.inputs)
    twice = [n for n, v in named.items() if counts[v.number] > 1]
    unread = [n for n, v in named.items() if not counts[v.number]]
    if twice:
        yield f"read more than once, so that all uses must agree: {', '.join(twice)}"
    if unread:
        yield f"not read by this loss, left out: {', '.join(unread)}"


def untraced(params: Mapping[str, Tensor], value: Tensor) -> Trace:
    """The trace of a computation that cannot be recorded: parameters and a loss, nothing between.

    Example:
        >>> untraced({"w": torch.ones(3)}, torch.tensor(0.5)).nodes
        []
    """
    named = {n: Value(k, tuple(params[n].shape)) for k, n in enumerate(params)}
    return Trace(named, [], None, Value(len(named), ()), value)


def layer_name(parameter: str) -> str:
    """`features.3` for `features.3.weight`, `model/dense` for `model/dense/kernel`."""
    return re.sub(r"[./][^./]*$", "", parameter)
