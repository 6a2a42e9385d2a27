"""Kinds: which symmetries are evaluated together, and their moments from one walk."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.weights.charges.readout import Readout
from eqtoolbox.weights.forms.form import Moments
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.sketch import Sketch
from eqtoolbox.weights.forms.stack import Pair, Points, stacks
from eqtoolbox.weights.parameter import ContinuousSymmetry

Kind = tuple[Moments, list[ContinuousSymmetry]]


def kinds_of(
    members: Sequence[ContinuousSymmetry], layout: StackLayout, sketch: bool
) -> Iterator[Kind]:
    """Symmetries that are evaluated together; whole families, so that theirs lie together."""
    families: dict[str, list[ContinuousSymmetry]] = {}
    for m in members:
        families.setdefault(m.family, []).append(m)
    groups: dict[tuple[object, ...], list[ContinuousSymmetry]] = {}
    for family, of in families.items():
        several = len({m.form.key for m in of}) > 1
        for m in of:
            alone = (family,) if several or (sketch and m.form.large) else ()
            groups.setdefault((*alone, *m.form.key), []).append(m)
    for of in groups.values():
        forms = [m.form for m in of]
        large = sketch and forms[0].large
        yield (Sketch(forms, layout) if large else forms[0].together(forms, layout)), of


def taken(
    kinds: Sequence[Moments],
    layout: StackLayout,
    points: Points,
    pairs: Sequence[Pair],
    squares: Sequence[int] = (),
    beside: Tensor | None = None,
    parcel: Parcel | None = None,
) -> Readout:
    """Moments of every kind, all of them from one stack before the next.

    Whatever the device, a single copy to the host brings everything.

    Args:
        kinds: whose moments.
        layout: of the tensors.
        points: that they are at.
        pairs: of points.
        squares: points of which |point|^2 is asked for.
        beside: further numbers to add up over all shards and bring along, (numbers,).
        parcel: with which they go to the host; without, they are sent by themselves.
    """
    shapes = [(len(pairs), *kind.shape) for kind in kinds]
    sizes = [math.prod(shape) for shape in shapes]
    if beside is None:
        beside = torch.zeros(0, dtype=layout.dtype, device=layout.device)
    sizes += [len(squares), len(beside)]
    flat = torch.zeros(sum(sizes), dtype=layout.dtype, device=layout.device)
    *own, totals, more = torch.split(flat, sizes)
    more.copy_(beside)
    moments = [m.view(shape) for m, shape in zip(own, shapes, strict=True)]
    order = sorted(zip(kinds, moments, strict=True), key=lambda one: one[0].multiplies)
    points.whole(
        pairs[0][1], [name for kind in kinds for name in kind.read_whole]
    )  # all by one sum
    for stack in stacks(layout, points, pairs) if kinds or squares else ():
        for k, square in enumerate(() if stack.piece.again else squares):
            point = stack.each[square].view(-1)
            totals[k] += torch.dot(point, point)
        for kind, into in order:
            kind.add(stack, points, pairs, into)
    flat = points.shards.total(flat)
    *own, _, _ = torch.split(flat, sizes)
    for kind, into, shape in zip(kinds, own, shapes, strict=True):
        into.view(shape).add_(kind.rest(points, pairs))
    given = Parcel() if parcel is None else parcel
    return Readout(read=given.add(flat), shapes=shapes, squared=len(squares), more=len(beside))
