"""Propagation: what every operation of a trace does to axes and exponents, in two passes.

The first passes over the structure: every operation ties, factors and cuts axes. The second is over
exponents: products add; sums equate; positively homogeneous maps pass; smooth maps and softmax pin
to zero; a contraction over i demands x_i + w_i constant and passes the constant on; a normalisation
demands a constant and absorbs it; reshapes carry along. An operation not listed pins all that it
reads, which can only make the group found smaller, and is named.
"""

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from eqtoolbox.weights.tracing.blocks import Choice, blocks, size_of
from eqtoolbox.weights.tracing.dims import Dim, unify
from eqtoolbox.weights.tracing.exponents import Carried, Exponent, Terms, masked, pin
from eqtoolbox.weights.tracing.pinned import Pinned
from eqtoolbox.weights.tracing.system import Linear, System
from eqtoolbox.weights.tracing.trace import Node, Trace, Value
from eqtoolbox.weights.tracing.zeros import RESHAPES, SPREADS, joins_units, makes_zeros

Mode = Literal["scale", "sign"]
EPSILON = 1e-3  # a constant up to this counts as a normalisation's epsilon wherever it is added
LARGEST = 0.1  # up to this where a root or a division follows; verification judges what is left
FAILURES = (IndexError, KeyError, TypeError, ValueError, AttributeError, StopIteration)

UNIFORM = {"zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "new_ones", "fill"}


@dataclass
class Propagation:
    """Axes and exponents of all values of a trace, with the system that makes them consistent.

    In mode "sign" an exponent says which entries change sign: odd maps pass, ReLU pins.
    """

    mode: Mode = "scale"
    carried: dict[int, Carried] = field(default_factory=dict)  # by value, parameters and after
    system: System = field(default_factory=System)
    separations: list[tuple[Carried, tuple[int, ...] | None]] = field(default_factory=list)
    # tensors whose indices along these axes (None: all) an operation tells apart
    gated: list[Carried] = field(default_factory=list)  # passed a product with another activation
    read: dict[Hashable, list[Dim]] = field(default_factory=dict)  # tables' rows, by numbers
    gains: set[int] = field(default_factory=set)  # values that act as a normalisation's gain
    normalised: list[Exponent] = field(default_factory=list)  # absorbed by a normalisation
    mixed: list[tuple[list[Dim], list[Dim]]] = field(default_factory=list)
    # axes that a softmax or norm mixes, of the axes it works on
    named: list[Dim] = field(default_factory=list)  # axes whose indices mean something outside
    zeros: set[int] = field(default_factory=set)  # values that are zero whatever scales them
    vacant: list[Carried] = field(default_factory=list)  # of these, what is joined to something
    uniform: set[int] = field(default_factory=set)  # values that are the same number everywhere
    derived: set[int] = field(default_factory=set)  # values that depend on data and parameters
    origin: dict[int, int] = field(default_factory=dict)  # parameter that a value reshapes
    spread: dict[int, set[int]] = field(default_factory=dict)  # axes that data is repeated along
    pinned: Pinned = field(default_factory=Pinned)  # what symmetries may be lost at
    lost: list[tuple[str, list[Dim], dict[str, None]]] = field(default_factory=list)
    # axes that permutations may be lost along
    rooted: set[int] = field(default_factory=set)  # values before a root, or divided by
    largest: float = LARGEST  # constant that may be an epsilon there
    taken: set[float] = field(default_factory=set)  # above EPSILON, and taken for one
    constants: set[float] = field(default_factory=set)  # too large for one
    exchanges: bool = (
        False  # structure alone: running statistics go along, as they do with no scale
    )
    # by value, and by operation of what it reads, the blocks that the target depends on: `needed`
    wanted: dict[int, set[Choice] | None] = field(default_factory=dict)
    masks: dict[int, list[tuple[Carried, set[Choice]]]] = field(default_factory=dict)
    todo: list[tuple[Node, Callable[[], None]]] = field(default_factory=list)
    node: Node | None = None  # whose rule is running

    def of(self, value: Value) -> Carried:
        """A value as it is carried; data has axes of its own each time it is read."""
        found = self.carried.get(value.number)
        if found is not None:
            return found
        alike = value.number in self.zeros or value.number in self.uniform
        repeated = self.spread.get(value.number, set())
        same = [alike or a in repeated for a in range(len(value.shape))]
        return Carried(
            [Dim(n) if s else self.told(n) for s, n in zip(same, value.shape, strict=True)]
        )

    def told(self, size: int) -> Dim:
        """A new axis whose indices mean something outside: data, positions, classes."""
        dim = Dim(size)
        self.name(dim)
        return dim

    def moves(self, value: Any) -> bool:
        """Whether it depends on parameters."""
        return isinstance(value, Value) and value.number in self.carried

    def nothing(self, value: Value) -> bool:
        """Whether it is zero, and carries nothing along."""
        return value.number in self.zeros and not self.moves(value)

    def make(self, value: Value, axes: list[Dim]) -> Carried:
        """A result on these axes; its exponent comes in the second pass."""
        if [size_of(a) for a in axes] != list(value.shape):
            raise ValueError(f"axes do not fit the shape {value.shape}")
        self.carried[value.number] = made = Carried(axes)
        return made

    def later(self, closure: Callable[[], None]) -> None:
        """To do in the second pass, in the order in which rules ran."""
        if self.node is not None:
            self.todo.append((self.node, closure))

    def aligned(self, value: Value, axes: list[Dim]) -> tuple[Carried, dict[int, int]]:
        """A value tied to the axes that it is broadcast to, and where its own go."""
        own = self.of(value)
        lead = len(axes) - len(own.axes)
        for i, axis in enumerate(own.axes):
            if size_of(axis) != 1 or size_of(axes[i + lead]) == 1:
                unify(axis, axes[i + lead])
        return own, {i: i + lead for i in range(len(own.axes))}

    def pin(self, *values: Any) -> None:
        """These must not be scaled at all."""
        own = [self.carried[v.number] for v in values if self.moves(v)]

        def close() -> None:
            for carried in own:
                pin(self.system, carried.exponent)

        self.later(close)

    def separate(self, carried: Carried, *axes: int) -> None:
        """Units at different indices of `axes` are told apart (all axes if none are given)."""
        self.separations.append((carried, axes or None))

    def name(self, *dims: Dim) -> None:
        """The indices of these mean something outside: they do not change places."""
        self.named += dims

    def note(self, what: str, *values: Value, dims: list[Dim] | None = None) -> None:
        """Scales may be lost here, now that the second pass comes by; and permutations.

        Args:
            what: in words.
            values: what they are lost of.
            dims: axes of permutations that may be lost; None: all of these values.
        """
        sources = self.pinned.behind(values)
        own = [self.of(v) for v in values if self.moves(v)]
        axes = [a for c in own for a in c.axes] if dims is None else dims
        self.lost.append((what, axes, sources))
        self.later(lambda: self.pinned.note(what if _any(own) else "", sources))


def _any(carried: list[Carried]) -> bool:
    return any(terms for c in carried for terms in c.exponent.values())


Rule = Callable[[Propagation, Node], None]
Fill = Callable[[Propagation], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unknown(state: Propagation, node: Node) -> None:
    """No rule: everything that the operation reads is pinned."""
    what = (
        f"no rule for {node.name}: what it reads was taken as fixed, so that symmetries through it"
    )
    state.note(f"{what} are missed", *node.inputs)
    state.pin(*node.inputs)


def made_by(node: Node) -> Value:
    """The operation's first result."""
    made = node.outputs[0]
    assert made is not None
    return made


def propagate(
    trace: Trace,
    target: Value,
    fill: Fill | None,
    mode: Mode = "scale",
    largest: float = LARGEST,
) -> Propagation:
    """Axes and exponents up to `target`.

    Args:
        trace: of the loss.
        target: value to follow to.
        fill: gives the parameters their exponents, once the structure is final; None: no second
            pass, for the structure alone, where running statistics move like parameters.
        mode: see `Propagation`.
        largest: constant before a root or a division that may be an epsilon.
    """
    state = Propagation(mode=mode, rooted=trace.rooted(), largest=largest)
    state.exchanges = fill is None
    state.system.binary = mode == "sign"
    for name, value in trace.parameters.items():
        state.carried[value.number] = Carried([Dim(n) for n in value.shape])
        state.origin[value.number] = value.number
        state.pinned.parameters[value.number] = name
    for value in trace.statistics.values() if state.exchanges else ():
        state.carried[value.number] = Carried([Dim(n) for n in value.shape])
    for node in trace.live(target):
        _follow(state, node)
    if fill is not None:
        fill(state)
    todo, state.todo = state.todo, []  # closures, which would keep the state alive
    for ran, closure in todo if fill is not None else ():
        _close(state, ran, closure)
    return state


def _follow(state: Propagation, node: Node) -> None:
    """The first pass over one operation."""
    inputs = node.inputs
    outputs = [o.number for o in node.outputs if o is not None]
    if node.name in UNIFORM or (node.name in SPREADS and inputs[0].number in state.uniform):
        state.uniform.update(outputs)
    if makes_zeros(node, state.zeros):
        state.zeros.update(outputs)
        return
    if node.name == "mul" and 0 in node.args:  # carried along as well, as units that are inert
        state.zeros.update(outputs)
    joined = joins_units(node, state.zeros | state.uniform)
    if not joined and not any(map(state.moves, inputs)):
        if node.name == "expand":
            state.spread.update(dict.fromkeys(outputs, _repeated(inputs[0], made_by(node))))
        return
    if any(not state.moves(v) or v.number in state.derived for v in inputs):
        state.derived.update(outputs)
    elif node.name in RESHAPES and inputs[0].number in state.origin:
        state.origin.update(dict.fromkeys(outputs, state.origin[inputs[0].number]))
    state.pinned.follow(node, [v for v in inputs if state.moves(v)])
    state.node = node
    before = len(state.todo), len(state.lost)
    try:
        RULES.get(node.name, unknown)(state, node)
    except FAILURES:
        del state.todo[before[0] :], state.lost[before[1] :]
        for number in outputs:
            state.carried.pop(number, None)
        unknown(state, node)


def _close(state: Propagation, node: Node, closure: Callable[[], None]) -> None:
    """The second pass over one operation; one that fails pins what it reads, and is named."""
    masks = state.masks.get(id(node), ())
    whole = [(own, own.exponent) for own, _ in masks]
    for own, wanted in masks:
        own.exponent = masked(own, wanted)
    try:
        closure()
    except FAILURES:
        moving = [v for v in node.inputs if state.moves(v)]
        what = f"{node.name} of these axes was taken as fixed, so that symmetries through it"
        state.pinned.note(f"{what} are missed", state.pinned.behind(moving))
        axes = [a for v in moving for a in state.of(v).axes]
        state.lost.append((f"{what} are missed", axes, state.pinned.behind(moving)))
        for value in moving:
            pin(state.system, state.of(value).exponent)
        for output in node.outputs:
            if output is not None and state.moves(output):
                state.carried[output.number].exponent = {}
    finally:
        for own, exponent in whole:
            own.exponent = exponent


def _repeated(value: Value, made: Value) -> set[int]:
    """Axes of an expanded value along which it is the same."""
    lead = len(made.shape) - len(value.shape)
    old = (*itertools.repeat(1, lead), *value.shape)
    return {a for a, (n, m) in enumerate(zip(old, made.shape, strict=True)) if n == 1 != m}


def everywhere(carried: Carried, form: Linear) -> Exponent:
    """The same in every block."""
    options = (range(len(blocks(a))) for a in carried.axes)
    terms: Terms = {(): form}
    return dict.fromkeys(itertools.product(*options), terms)
