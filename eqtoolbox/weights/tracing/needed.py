"""Needed: which blocks of every value a target depends on, from the last operation back.

What is cut away later (positions behind a class token, the rest of a split) takes no part, and is
asked for nothing. An operation that is not listed needs all that it reads.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from eqtoolbox.weights.tracing import rules_entries
from eqtoolbox.weights.tracing.blocks import Choice, blocks, size_of
from eqtoolbox.weights.tracing.dims import Dim, find
from eqtoolbox.weights.tracing.exponents import Carried, choices, lined_up
from eqtoolbox.weights.tracing.propagation import FAILURES, RULES, Propagation
from eqtoolbox.weights.tracing.rules_norms import dropped
from eqtoolbox.weights.tracing.rules_picked import CUTS, listed, met, pieces
from eqtoolbox.weights.tracing.rules_shape import PERMUTED, VIEWS, order_of, shifted
from eqtoolbox.weights.tracing.trace import Node, Value

Wanted = set[Choice] | None  # blocks, one an axis; None: all of them
_SOFTMAX = {"softmax", "_softmax", "_log_softmax", "_safe_softmax", "log_softmax"}  # keep the shape
_PRODUCTS = {"mm", "bmm", "mv", "addmm", "baddbmm", "addmv"}
_ENTRYWISE = {n for n, r in RULES.items() if r.__module__ == rules_entries.__name__}
_ENTRYWISE = _ENTRYWISE - {"logsumexp", "prelu"} | {"expand"}


@dataclass
class Needed:
    """By number of a value the blocks that are read, and the same of one operation's inputs."""

    values: dict[int, Wanted] = field(default_factory=dict)
    masks: dict[int, list[tuple[Carried, set[Choice]]]] = field(default_factory=dict)  # by node

    @classmethod
    def of(cls, state: Propagation, nodes: list[Node], target: Value) -> "Needed":
        """For the target, along operations whose structure is final."""
        found, read = cls({target.number: None}), {target.number}
        read.update(v.number for node in nodes for v in node.inputs)
        for node in reversed(nodes):
            asked: dict[int, tuple[Carried, Wanted]] = {}
            for value in {v.number: v for v in node.inputs if state.moves(v)}.values():
                own, wanted = state.of(value), found._behind(state, node, value, read)
                so_far = found.values.get(value.number, set())
                found.values[value.number] = _joined(own, so_far, wanted)
                _, so_far = asked.get(id(own), (own, set()))
                asked[id(own)] = own, _joined(own, so_far, wanted)
            if masks := [(own, w) for own, w in asked.values() if w is not None]:
                found.masks[id(node)] = masks
        return found

    def _behind(self, state: Propagation, node: Node, value: Value, read: set[int]) -> Wanted:
        """Blocks of an input that the needed results of an operation depend on."""
        total: Wanted = set()
        own = state.of(value)
        made = [o for o in node.outputs if o is not None and not state.nothing(o)]
        if any(o.number in read and not state.moves(o) for o in made):
            return None
        for result in filter(state.moves, made):
            wanted = self.values.get(result.number, set())
            if wanted is None or wanted:
                try:
                    total = _joined(own, total, _before(state, node, value, result, wanted))
                except FAILURES:
                    return None
        return total


def _joined(own: Carried, first: Wanted, second: Wanted) -> Wanted:
    if first is None or second is None:
        return None
    both = first | second
    return None if len(both) == math.prod(len(blocks(a)) for a in own.axes) else both


def _before(state: Propagation, node: Node, value: Value, made: Value, wanted: Wanted) -> Wanted:
    x, y = state.of(value), state.of(made)
    if node.name in (*CUTS, "cat", "roll", "flip", "index_select", "index"):
        axis, drop, table = _moved(state, node, value, made)
        if table is None:
            return None
        return {
            c
            for c in choices(x.axes)
            for k in table.get(c[axis], ())
            if wanted is None or (*c[:axis], *([] if drop else [k]), *c[axis + 1 :]) in wanted
        }
    if wanted is None:
        return None
    if node.name in VIEWS:
        return _unviewed(x, y, wanted)
    kept = _kept(state, node, value, made)
    kept = {a: b for a, b in kept.items() if find(x.axes[a]) is find(y.axes[b])}
    seen = {tuple(choice[b] for b in kept.values()) for choice in wanted}
    return {c for c in choices(x.axes) if tuple(c[a] for a in kept) in seen}


Moved = tuple[int, bool, dict[int, list[int]] | None]


def _moved(state: Propagation, node: Node, value: Value, made: Value) -> Moved:
    """An axis whose blocks are picked, if it goes away, and where each is after it; None: blurred.

    Along the other axes nothing happens.
    """
    x, y = state.of(value), state.of(made)
    table: dict[int, list[int]] = {}
    if node.name in CUTS:
        axis, parts, drop = pieces(node)
        chosen = Dim(1) if drop else y.axes[axis]
        found = met(x.axes[axis], chosen, next(own for part, own in parts if part is made))
        whole = len(found) == len(blocks(chosen))
        return axis, drop, {k: [j] for k, j in found.items()} if whole else None
    if node.name == "cat":
        axis, at = node.arg(1, "dim", 0) % len(y.axes), 0
        known = {b.place: k for k, b in enumerate(blocks(y.axes[axis]))}
        for part in (v for v in node.args[0] if v.size):
            for k, j in shifted(x.axes[axis], at, known).items() if part is value else ():
                table.setdefault(k, []).append(j)
            at += part.shape[axis]
        return axis, False, table
    if node.name == "roll":
        axes = node.arg(2, "dims", [])
        if len(axes) != 1:
            return 0, False, None
        axis = axes[0] % len(y.axes)
        size = value.shape[axis]
        known = {b.place: k for k, b in enumerate(blocks(y.axes[axis]))}
        flat = "flat" in (find(x.axes[axis]).kind, find(y.axes[axis]).kind)
        if flat:
            return axis, False, None
        rolled = shifted(x.axes[axis], node.args[1][0] % size, known, size)
        return axis, False, {k: [j] for k, j in rolled.items()}
    axis, numbers = listed(node)
    places = {b.offset: k for k, b in enumerate(blocks(x.axes[axis]))}
    if len(places) < size_of(x.axes[axis]) or len(blocks(y.axes[axis])) != len(numbers):
        return axis, False, None
    for j, number in enumerate(numbers):
        table.setdefault(places[number], []).append(j)
    return axis, False, table


def _kept(state: Propagation, node: Node, value: Value, made: Value) -> Mapping[int, int]:
    """Axes of an input whose indices are those of the result: entry by entry along them."""
    dims, given = len(value.shape), list(node.args)
    lead = len(made.shape) - dims
    last = {
        i: i + lead for i in range(max(-lead, 0), dims) if value.shape[i] == made.shape[i + lead]
    }
    if node.name in _SOFTMAX:
        return {a: b for a, b in last.items() if a != node.arg(1, "dim", -1) % dims}
    if node.name in _ENTRYWISE:
        return last
    if sum(v.number == value.number for v in node.inputs) > 1:
        return {}
    place = next((k for k, v in enumerate(given) if v is value), -1)
    if node.name in PERMUTED:
        return {a: i for i, a in enumerate(order_of(node, dims))}
    if node.name in _PRODUCTS:
        place -= node.name in ("addmm", "baddbmm", "addmv")
        batch = {0: 0} if dims == 3 else {}
        sides = {dims - 2: dims - 2}, {dims - 1: len(made.shape) - 1}
        return last if place < 0 else {} if dims == 1 else {**batch, **sides[place]}
    if node.name == "native_layer_norm":
        wide = len(given[1])
        return last if place else {a: a for a in range(dims - wide)}
    if "batch_norm" in node.name:
        return {0: 1} if place else {1: 1}
    if node.name == "convolution":
        return ({0: 0}, {} if given[6] else {0: 1}, {0: 1})[place]
    if node.name in ("sum", "mean", "amax", "amin", "linalg_vector_norm", "var"):
        left = [a for a in range(dims) if a not in dropped(node)]
        return {a: a if len(made.shape) == dims else i for i, a in enumerate(left)}
    return {1: len(made.shape) - 1} if node.name == "embedding" else {}


def _unviewed(x: Carried, y: Carried, wanted: set[Choice]) -> Wanted:
    found, (runs, _) = set(), lined_up(x.axes, y.axes)
    for choice in choices(x.axes):
        options = [[c for c, _ in table[tuple(choice[i] for i in left)]] for left, _, table in runs]
        for combination in itertools.product(*options):
            there = {a: k for (_, right, _), own in zip(runs, combination, strict=True)
                     for a, k in zip(right, own, strict=True)}  # fmt: skip
            if tuple(there[a] for a in range(len(y.axes))) in wanted:
                found.add(choice)
    return found
