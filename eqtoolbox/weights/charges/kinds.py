"""Kinds: which symmetries are evaluated together, and their moments from one walk."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.forms.diagonal import LONG
from eqtoolbox.weights.forms.form import Moments
from eqtoolbox.weights.forms.sketch import Sketch
from eqtoolbox.weights.forms.stack import Pair, Points, StackLayout, Stacks
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
    stacks: Stacks,
    points: Points,
    pairs: Sequence[Pair],
    squares: list[Tensor] | None = None,
) -> list[Tensor]:
    """Moments of every kind, all of them taken from one stack before the next.

    `squares` is given |point 1|^2 of every stack.
    """
    rows: list[list[list[Tensor]]] = [[] for _ in kinds]
    for stack in stacks.over(points):
        for into, kind in zip(rows, kinds, strict=True):
            into.append(kind.rows(stack, points, pairs))
        if squares is not None:
            parts = torch.split(stack.whole[1].reshape(-1), LONG)
            squares += [torch.dot(part, part) for part in parts]
    return [k.gathered(r, pairs) for k, r in zip(kinds, rows, strict=True)]
