"""Rules of propagation for rows of tables, picked by numbers that are data.

A row stays itself wherever it is picked: its scale goes along to the places that read it, where a
normalisation may absorb it; whatever would tie it to the rows at other places gives it up.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from eqtoolbox.weights.tracing.blocks import Choice, blocks, size_of
from eqtoolbox.weights.tracing.dims import unify
from eqtoolbox.weights.tracing.exponents import Carried, Slots, Terms, plus
from eqtoolbox.weights.tracing.propagation import Propagation, made_by, rule, unknown
from eqtoolbox.weights.tracing.rules_picked import ALIKE, apart, gathered, listed, selected
from eqtoolbox.weights.tracing.system import Linear, System
from eqtoolbox.weights.tracing.trace import Node, Value


@rule("index")
def _index(state: Propagation, node: Node) -> None:
    """By one list of numbers on a small axis every index for itself, else rows of a table."""
    value, indices, made = node.args[0], node.args[1], made_by(node)
    gone = [a for a, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    neighbours = gone == list(range(gone[0], gone[-1] + 1))
    if not state.moves(value) or any(map(state.moves, given)) or not neighbours:
        unknown(state, node)
        return
    x, (axis, numbers) = state.of(value), listed(node)
    if numbers and apart(x.axes[axis]):
        selected(state, x, axis, numbers, made)
        return
    state.note(f"entries picked by an index {ALIKE}", value, dims=[x.axes[a] for a in gone])
    wide = len(made.shape) - len(x.axes) + len(gone)
    read = tuple(i.number for i in given)
    _rows(state, x, gone, made, made.shape[gone[0] : gone[0] + wide], read)


@rule("embedding")
def _embedding(state: Propagation, node: Node) -> None:
    """Rows of a table by token."""
    table, tokens = node.args[:2]
    if state.moves(tokens):
        unknown(state, node)
        return
    _rows(state, state.of(table), [0], made_by(node), tokens.shape, (tokens.number,))


@dataclass
class _Rows:
    """Entries of neighbouring axes, `gone`, picked by numbers."""

    x: Carried
    gone: list[int]
    result: Carried
    numbers: tuple[int, ...]  # which values these are

    @property
    def fresh(self) -> range:
        """The axes of the numbers, in place of those gone."""
        return range(self.gone[0], self.gone[-1] + 1 + len(self.result.axes) - len(self.x.axes))

    def carry(self, system: System, choice: Choice, slots: Slots, form: Linear) -> bool:
        """A component goes to all places that read it; False where two axes of these are one."""
        fresh, rest = self.fresh, [a for a in range(len(choice)) if a not in self.gone]
        where = {a: i + (a > self.gone[0]) * len(fresh) for i, a in enumerate(rest)}
        beside = [(where[a], k) for a, k in slots if a in where]
        rows = tuple((choice[a], self.x.atom(choice, (a, k))) for a, k in slots if a in self.gone)
        options = [range(len(blocks(axis))) for axis in self.result.axes]
        for a, axis in where.items():
            options[axis] = range(choice[a], choice[a] + 1)
        for there in itertools.product(*options):
            read = {a: blocks(self.result.axes[a])[there[a]] for a in fresh}
            places = [(a, k) for a, block in read.items() for k in range(len(block.strides))]
            atoms = [self.result.atom(there, place) for place in (*places, *beside)]
            if len(set(atoms)) < len(atoms) or any(atom.kind == "flat" for atom in atoms):
                return False
            at = tuple(block.place for block in read.values())
            order = self.numbers, at, tuple(atoms[: len(places)]), rows
            copied = {tuple(sorted((*places, *beside))): {system.copy(form, order): 1.0}}
            self.result.exponent = plus(self.result.exponent, {there: copied})
        return True


def _rows(
    state: Propagation,
    x: Carried,
    gone: list[int],
    made: Value,
    shape: Sequence[int],
    numbers: tuple[int, ...],
) -> None:
    """Entries at numbers of this shape; what varies along the axes gone goes along with them.

    Of two tables that are read at the same numbers the rows are one axis.
    """
    state.separate(x, *gone)
    own = [x.axes[a] for a in gone]
    of = numbers, tuple(map(size_of, own))
    for mine, first in zip(own, state.read.setdefault(of, own), strict=True):
        unify(mine, first)
    steady, varying = Carried(x.axes), list[tuple[Choice, Slots, Linear]]()

    def divide() -> None:
        alike: dict[Choice, Terms] = {}
        for choice, terms in x.exponent.items():
            apart = [s for s in terms if any(a in gone for a, _ in s)]
            varying.extend((choice, s, terms[s]) for s in apart)
            kept = {s: form for s, form in terms.items() if s not in apart}
            alike[choice] = kept if apart else terms
        steady.exponent = alike

    state.later(divide)
    result = gathered(state, steady, gone, made, [state.told(n) for n in shape])
    rows = _Rows(x, gone, result, numbers)

    def carry() -> None:
        for component in varying:
            if not rows.carry(state.system, *component):
                state.system.vanish(component[-1])
                what = "rows at places that are one axis twice: scales of rows are missed"
                state.pinned.note(what, state.pinned.behind([made]))

    state.later(carry)


@rule("gather")
def _gather(state: Propagation, node: Node) -> None:
    """Entries along one axis by numbers of their own: alike along it."""
    value, axis, index = node.args[:3]
    x, made = state.of(value), made_by(node)
    axis %= len(x.axes)
    whole = all(n == m for a, (n, m) in enumerate(zip(value.shape, made.shape, strict=True))
                if a != axis)  # fmt: skip
    if not state.moves(value) or state.moves(index) or not whole:
        unknown(state, node)
        return
    if state.mode == "sign":
        state.pin(value)
    state.note(f"entries picked by gather {ALIKE}", value, dims=[x.axes[axis]])
    gathered(state, x, [axis], made, [state.told(made.shape[axis])])


@rule("scatter", "scatter_add", "index_add")
def _scattered(state: Propagation, node: Node) -> None:
    """Entries put among zeros along one axis: alike along it."""
    target, axis, index, source = node.args[:4]
    moving = state.moves(source) and not state.moves(index)
    other = [a for a in range(len(target.shape)) if a != axis % len(target.shape)]
    whole = moving and all(source.shape[a] == target.shape[a] for a in other)
    if not whole or target.number not in state.zeros:
        unknown(state, node)
        return
    made, place = made_by(node), axis % len(target.shape)
    if state.mode == "sign":
        state.pin(source)
    own = state.of(source)
    state.note(f"entries put by {node.name} {ALIKE}", source, dims=[own.axes[place]])
    gathered(state, own, [place], made, [state.told(made.shape[place])])
