"""Parted: the symmetries of a model that several processes hold, found from shapes and shards.

One process reads off the trace what there may be, from shapes alone, and tells the others; then all
look at the gradient that each holds its shards of. Nobody holds the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqtoolbox.weights.forms.here import flow_here
from eqtoolbox.weights.forms.mapped import pulled
from eqtoolbox.weights.forms.stack import Points
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters, ParameterSymmetry
from eqtoolbox.weights.search.bias_shifts import EQUAL, Read, propose_bias_shifts, vectors_read
from eqtoolbox.weights.search.compensations import propose_compensations
from eqtoolbox.weights.search.discrete import DiscreteProposals
from eqtoolbox.weights.search.find import without_numbers
from eqtoolbox.weights.search.found import Found, structure_of
from eqtoolbox.weights.search.groups import Stretch, stretches
from eqtoolbox.weights.search.head import propose_head
from eqtoolbox.weights.search.homogeneous import propose_homogeneity
from eqtoolbox.weights.search.inert import apart, exchanged
from eqtoolbox.weights.search.member import proposals
from eqtoolbox.weights.search.members import each_member
from eqtoolbox.weights.search.moves import Move
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.problem import Run
from eqtoolbox.weights.search.shifts import translations
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.translations import TranslationSearch
from eqtoolbox.weights.search.verification import draw, joint_changes, judged, limit
from eqtoolbox.weights.tracing.propagation import LARGEST
from eqtoolbox.world.shards import Shards

Value = Callable[[dict[str, Tensor]], Tensor]
_ROUNDINGS = 100.0  # that sums of a gradient may be from zero, over its largest entry


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a trace shows, before a number is looked at: plain enough to be sent to others."""

    chains: list[list[ContinuousSymmetry]]  # of every member what to try, the larger groups first
    moving: list[ContinuousSymmetry]  # that move outputs
    discrete: list[ParameterSymmetry]
    order: list[str]  # of the parameters
    stretches: list[Stretch]  # of an axis that may be groups
    read: list[Read]  # vectors that only linear maps read
    notes: list[str]
    structure: str


def find_parted(
    run: Run,
    params: Parameters,
    gradient: Parameters,
    shards: Shards,
    of_first: Callable[[Callable[[], Shown]], Shown],
    loss: Value | None = None,
    outputs: Value | None = None,
    everywhere: Callable[[Tensor], Tensor] | None = None,
    statistics: Parameters | None = None,
) -> Found:
    """Symmetries of a model of which this process holds shards: `shown` once, then `confirmed`.

    Args:
        run: params -> (output or None, loss), of whole parameters, which are on meta.
        params: what is held here of a point, best in `general` position.
        gradient: likewise, of the loss on all ranks, there.
        shards: who holds the rest.
        of_first: what a function returns on the first process, which alone calls it.
        loss: see `confirmed`.
        outputs: see there.
        everywhere: see there.
        statistics: see `find_symmetries`.
    """
    whole = {
        n: torch.empty(shards.piece(n, p).whole, dtype=p.dtype, device="meta")
        for n, p in params.items()
    }
    seen = of_first(lambda: shown(run, whole, statistics))
    return confirmed(seen, params, gradient, shards, loss, outputs, everywhere)


def general(
    params: Parameters, shards: Shards, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What is held here of a point in general position, see `Point`.

    Where training begins, with gains of one and biases of zero, laws hold that hold nowhere else.
    What all hold whole, and copies of one shard, move alike; shards each in their own way.

    Args:
        params: what is held here.
        shards: who holds the rest.
        dtype: of what is returned; None: the parameters' own.
    """
    cut = {n for n, p in params.items() if shards.piece(n, p).dim is not None}
    found: dict[str, Tensor] = {}
    for names, seed in ((cut, (shards.rank + 1) * len(params)), (params.keys() - cut, 0)):
        point = Point({n: params[n] for n in params if n in names}, dtype, seed)
        found |= {n: point.seen(n) for n in point}
    return {n: found[n].to(dtype or found[n].dtype) for n in params}


def shown(
    run: Run, params: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
) -> Shown:
    """What one evaluation shows, of parameters whose shapes are looked at: they may be on meta.

    Args:
        run: params -> (output or None, loss), of whole parameters.
        params: of the shapes of the whole ones.
        statistics: see `find_symmetries`.

    Raises:
        ValueError: the computation needs numbers, and parameters are on meta.
    """
    traced = without_numbers(run, params, statistics or {})
    members, state = each_member(traced)
    chains = [trials for _, trials in proposals(members)]
    discrete = DiscreteProposals(traced, chains)
    head = list(propose_head(traced))
    named = [set(s.names) for s in head]
    whole = [s for s in propose_homogeneity(traced) if set(s.names) not in named]
    pinned = state.pinned.joined(discrete.pinned)
    return Shown(
        chains=chains,
        moving=[*whole, *head],
        discrete=list(discrete.proposed),
        order=list(traced.parameters),
        stretches=stretches(traced),
        read=list(vectors_read(traced)),
        notes=[*traced.notes, *pinned.notes()],
        structure=structure_of(traced),
    )


def confirmed(
    seen: Shown,
    params: Parameters,
    gradient: Parameters,
    shards: Shards,
    loss: Value | None = None,
    outputs: Value | None = None,
    everywhere: Callable[[Tensor], Tensor] | None = None,
) -> Found:
    """Which of what was shown holds, from what is held here; all processes find the same.

    Order 1 of every generator of every symmetry, <g, K> = 0 summed over shards, decides; where a
    unit's gradient vanishes it is inert. Where the loss can be asked at moved parameters, what acts
    within the stretches of each process (scales and shifts) has to keep it, too, and shifts are
    looked for.

    Args:
        seen: what the first process was shown.
        params: what is held here of a point, best in `general` position.
        gradient: likewise, of the loss on all ranks, there.
        shards: who holds the rest.
        loss: of what is held here, the same number on all ranks; None: order 1 alone.
        outputs: of what is held here, this rank's own; None: nothing that moves outputs is told.
        everywhere: the sum over all ranks, of which several may hold the same shard; None: over
            those that `shards` adds up.

    Returns:
        Symmetries with their status; the first note says what that rests on.
    """
    dtype = next(iter(params.values())).dtype
    slopes = Slopes([s for chain in seen.chains for s in chain], shards, lit=True)
    slopes.add(params, gradient)
    rng, numbers = torch.Generator().manual_seed(0), iter(range(len(slopes.symmetries)))
    chosen: list[tuple[int, ContinuousSymmetry]] = []
    for chain in seen.chains:
        which = [next(numbers) for _ in chain]
        trials = [(k, _judged(slopes, k, dtype)) for k in which]
        chosen.append(next((t for t in trials if t[1].status != "broken"), trials[-1]))
    shifts = _shifts(seen, params, gradient, shards) if loss is not None else []
    every = [*(s for _, s in chosen), *shifts]
    moved = [_moves(s, params, shards, rng) for s in every]
    if loss is not None:
        every = _kept(every, moved, loss, params)
    parts: list[ParameterSymmetry] = []
    for k, symmetry in enumerate(every):
        parts += apart(symmetry, slopes.inert(chosen[k][0]) if k < len(chosen) else ())
    named = {(s.family, s.name) for s in parts if s.status == "inert"}
    said = [note for key, note in slopes.inert_notes() if key in named]
    tried = 0 if loss is None else sum(bool(m) for m in moved)
    rests = _RESTS.format(count=len(every), finite=tried)
    found = [s for s in parts if s.status != "broken" or s not in shifts]
    found += _outputs_move(seen, params, shards, outputs, everywhere or shards.total, rng)
    found += seen.discrete
    return Found(exchanged(found), [rests, *seen.notes, *said], seen.structure, LARGEST)


_RESTS = (
    "verified from shards: {count} symmetries of the loss to first order, at every generator, and "
    "{finite} of them at a finite transformation; what exchanges or reflects units was not tried"
)


def _judged(slopes: Slopes, k: int, dtype: torch.dtype) -> ContinuousSymmetry:
    """By order 1; what an epsilon may break by all its units together."""
    symmetry = slopes.symmetries[k]
    worst = slopes.overall(k) if symmetry.tolerance else slopes.residual(k)
    return judged(symmetry, worst, dtype)


def _shifts(
    seen: Shown, params: Parameters, gradient: Parameters, shards: Shards
) -> list[ContinuousSymmetry]:
    """What the gradient proposes, to its rounding: order 1 holds."""
    dtype = next(iter(params.values())).dtype
    rounding = _ROUNDINGS * torch.finfo(dtype).eps
    zero = rounding if dtype != torch.float64 else 1e-9
    search = TranslationSearch(seen.order, seen.stretches, shards, zero)
    search.add({name: gradient[name] for name in seen.order})
    flatly, common = translations(search)
    points = Points(given=(params, gradient), shards=shards)
    vectors = {n: v.double() for n, v in search.vectors.items()}
    back = lambda r: pulled(points, 0, r, vectors[r.bias])
    shapes = {n: shards.piece(n, p).whole for n, p in params.items()}
    found: list[ContinuousSymmetry] = [
        *flatly,
        *propose_bias_shifts(seen.read, back, vectors, max(EQUAL, rounding)),
        *propose_compensations(search.in_order(search.columns), shapes, common, zero),
    ]
    return [replace(s, status="verified", residual=0.0) for s in found]


def _moves(
    symmetry: ContinuousSymmetry, params: Parameters, shards: Shards, rng: torch.Generator
) -> list[Move]:
    """By an element and back, of what is held here; empty where that takes what others hold."""
    home = params[symmetry.names[0]]
    c = draw(symmetry, home, rng)
    if symmetry.tolerance:  # what an epsilon leaves depends on the size
        c = 2 * symmetry.strength * c.sign()
    flows = [flow_here(symmetry.form, x, shards.layout) for x in (c, -c)]
    return [Move(frozenset(symmetry.names), True, f) for f in flows if f is not None]


def _kept(
    every: Sequence[ContinuousSymmetry],
    moves: Sequence[list[Move]],
    loss: Value,
    params: Parameters,
) -> list[ContinuousSymmetry]:
    """Each judged by order 0 as well, where it can be moved."""
    found = list(every)
    dtype = next(iter(params.values())).dtype
    with torch.no_grad():
        value = loss(dict(params))
    for near in (False, True):
        which = [
            k
            for k, s in enumerate(every)
            if moves[k] and s.status != "broken" and (s.status == "approximate") == near
        ]
        small = max([limit(dtype), *(every[k].tolerance for k in which if near)])
        changes = joint_changes(loss, params, [moves[k] for k in which], value, small)
        for k, change in zip(which, changes, strict=True):
            found[k] = judged(every[k], max(change, every[k].residual), dtype)
    return found


def _outputs_move(
    seen: Shown,
    params: Parameters,
    shards: Shards,
    outputs: Value | None,
    everywhere: Callable[[Tensor], Tensor],
    rng: torch.Generator,
) -> Iterator[ContinuousSymmetry]:
    """Those of which the outputs move as they say: |f(T_c theta) - R_c f| / |f| of all outputs."""
    if outputs is None:
        return
    with torch.no_grad():
        y = outputs(dict(params))
        for symmetry in seen.moving:
            c = draw(symmetry, y, rng)
            flow = flow_here(symmetry.form, c, shards.layout)
            if flow is None:
                continue
            names = symmetry.names
            there = outputs({**params, **flow({n: params[n] for n in names})})
            gaps = (there - symmetry.transform_outputs(y, c)).double().square().sum()
            both = everywhere(torch.stack([gaps, y.double().square().sum()])).tolist()
            worst = (both[0] / max(both[1], 1e-300)) ** 0.5
            checked = judged(symmetry, worst, y.dtype)
            if checked.status != "broken":
                yield checked
