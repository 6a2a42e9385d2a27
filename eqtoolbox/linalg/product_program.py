"""A product as a program: its operations, recorded once, and those that hang on v compiled.

What does not hang on v is the graph that products share: it is computed once at each θ. What does
is linear in v, and is handed to torch's compiler as it is. Nothing of the program's own is traced
or patched: a dispatch mode of this thread hears of the operations.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from eqtoolbox.linalg.graph import Loss, check_scalar, differentiating, leaves
from eqtoolbox.linalg.vectors import Vector

Compile = Callable[[fx.GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]]


@dataclass(frozen=True)
class _Value:
    """A tensor of the program, by number."""

    number: int


@dataclass(frozen=True)
class _Call:
    """One operation with the numbers of what it returned."""

    function: Any
    args: Any
    kwargs: Any
    results: list[tuple[int | None, int]]  # index in what it returned (None: that itself), number


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations of this thread as calls; tensors it has not seen made are inputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.inputs: dict[int, Tensor] = {}
        self._numbers: dict[int, int] = {}  # by id
        self._alive: list[Tensor] = []  # so that no id comes twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(f"it draws random numbers ({func.overloadpacket.__name__})")
        given, named = tree_map(self._named, (args, kwargs or {}))
        found = func(*args, **(kwargs or {}))
        many = list(enumerate(found)) if isinstance(found, tuple | list) else [(None, found)]
        results = [(i, self._new(x)) for i, x in many if isinstance(x, Tensor)]
        self.calls.append(_Call(func, given, named, results))
        return found

    def number(self, x: Tensor) -> int:
        """Of a tensor of the program; one that is new is an input."""
        if id(x) not in self._numbers:
            self.inputs[self._new(x)] = x
        return self._numbers[id(x)]

    def _new(self, x: Tensor) -> int:
        self._numbers[id(x)] = len(self._alive)
        self._alive.append(x)
        return len(self._alive) - 1

    def _named(self, x: Any) -> Any:
        return _Value(self.number(x)) if isinstance(x, Tensor) else x


class ProductProgram:
    """v ↦ Hv as two programs: of θ and the data, and of v and what the first one left.

    It is of the computation as it went at `params`: branches taken and numbers read out are
    constants. A product at other parameters or other data has to be compared before it is trusted.

    Args:
        loss: as for `eqtoolbox.linalg.hessian`.
        params: θ where the computation is recorded.
        v: a vector, for shapes.
        given: tensors that the loss reads and that may be others later, such as its batch.
        compiling: makes a function of a graph and its inputs; default torch's inductor.

    Raises:
        ValueError: it draws random numbers, or writes where a later product reads.

    Example:
        >>> cubic = lambda p: (p["x"] ** 3).sum()
        >>> x, v = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.ones(2)}
        >>> program = ProductProgram(cubic, x, v, compiling=lambda graph, inputs: graph)
        >>> program.at({"x": torch.tensor([2.0, 3.0])})(v)["x"].tolist()
        [12.0, 18.0]
    """

    def __init__(
        self,
        loss: Loss,
        params: Vector,
        v: Vector,
        given: Sequence[Tensor] = (),
        compiling: Compile | None = None,
    ) -> None:
        points = leaves(params)
        dtypes = {name: p.dtype for name, p in params.items()}
        vs = [v[name].detach() for name in points]
        recorder = _Recorder()
        starts = [recorder.number(x) for x in points.values()]
        directions = [recorder.number(x) for x in vs]
        own = {id(x): i for i, x in enumerate(given)}
        with differentiating(loss, points), recorder:
            value = loss({n: x.to(dtypes[n]) for n, x in points.items()})
            rows = _derivative([value], points, None)
            kept = [(r, u) for r, u in zip(rows, vs, strict=True) if r is not None]
            rows = _derivative([r for r, _ in kept], points, [u for _, u in kept])
        check_scalar(value)
        out = [None if row is None else recorder.number(row) for row in rows]
        still, moving = _parted(recorder.calls, set(directions))
        made = {n for call in moving for _, n in call.results}
        used = {x for call in moving for x in _numbers(call)} | {n for n in out if n is not None}
        left = sorted(used - made - set(directions))
        constants = [n for n in recorder.inputs if n not in {*starts, *directions}]
        self._given = [own.get(id(recorder.inputs[n])) for n in constants]
        self._constants = [recorder.inputs[n] for n in constants]
        self._first = _graph(still, [*starts, *constants], left)
        second = _graph(moving, [*left, *directions], [n for n in out if n is not None])
        self._zero = [n is None for n in out]
        with torch.no_grad():
            rest = self._left(params, given)
            self._second = (compiling or _inductor)(second, [*rest, *vs])

    def at(
        self, params: Vector, given: Sequence[Tensor] = ()
    ) -> Callable[[Vector], dict[str, Tensor]]:
        """Products at θ, with data in the places of those it was recorded with."""
        rest = self._left(params, given)

        def product(v: Vector) -> dict[str, Tensor]:
            with torch.no_grad():
                rows = iter(self._second(*rest, *(v[n] for n in params)))
            zeros = zip(params, self._zero, strict=True)
            return {n: torch.zeros_like(v[n]) if zero else next(rows) for n, zero in zeros}

        return product

    def _left(self, params: Vector, given: Sequence[Tensor]) -> list[Tensor]:
        """What the first program leaves to the second."""
        known = zip(self._given, self._constants, strict=True)
        data = [x if i is None else given[i] for i, x in known]
        points = [x.detach() for x in leaves(params).values()]
        with torch.no_grad():
            return list(self._first(*points, *data))


def _derivative(
    outputs: list[Tensor], points: dict[str, Tensor], along: list[Tensor] | None
) -> Sequence[Tensor | None]:
    """The derivative with a graph of its own: autograd adds nothing up in place then."""
    return torch.autograd.grad(
        outputs, list(points.values()), along, create_graph=True, allow_unused=True
    )


def _parted(calls: list[_Call], directions: set[int]) -> tuple[list[_Call], list[_Call]]:
    """The calls that do not hang on the directions, and those that do."""
    still, moving, hanging = list[_Call](), list[_Call](), set(directions)
    for call in calls:
        if hanging.isdisjoint(_numbers(call)):
            still.append(call)
            continue
        if call.function._schema.is_mutable and call.args[0].number not in hanging:
            raise ValueError(f"{call.function} writes in place where a later product reads")
        moving.append(call)
        hanging.update(number for _, number in call.results)
    return still, moving


def _numbers(call: _Call) -> list[int]:
    given = tree_leaves((call.args, call.kwargs))
    return [x.number for x in given if isinstance(x, _Value)]


def _graph(calls: list[_Call], inputs: list[int], outputs: list[int]) -> fx.GraphModule:
    """The calls as a function of the inputs."""
    graph = fx.Graph()
    nodes = {n: graph.placeholder(f"x{n}") for n in inputs}
    for call in calls:
        args, kwargs = tree_map(
            lambda x: nodes[x.number] if isinstance(x, _Value) else x, (call.args, call.kwargs)
        )
        made = graph.call_function(call.function, args, kwargs)
        for i, n in call.results:
            nodes[n] = made if i is None else graph.call_function(operator.getitem, (made, i))
    graph.output(tuple(nodes[n] for n in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule({}, graph)


def _inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """By torch's compiler, in this process: no pool of workers is begun, no code is looked at.

    It leaves what it leaves wherever it is used: its directory of compiled code and the names of
    that in the environment.
    """
    from torch import _inductor as inductor
    from torch._inductor import config

    with config.patch(compile_threads=1):
        made: Callable[..., Sequence[Tensor]] = inductor.compile(graph, [*inputs])
    return made
