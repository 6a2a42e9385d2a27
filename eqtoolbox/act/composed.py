"""Composed: many motions as few, so that second moments, not linear in them, stay exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.act.assignment import Rearranged, within
from eqtoolbox.act.motion import Mixed, Motion
from eqtoolbox.weights.families.discrete import Permutation, Permuting


def collapsed(motions: Sequence[Motion]) -> list[Motion]:
    """The same map with the matrices of each group multiplied, before everything else.

    The elementwise square of M M^-1 is 1, that of M times that of M^-1 is not. Matrices commute
    with what acts on other axes; those of heads that have changed places are counted back. Where
    a permutation exchanges whole parameters that matrices act on, the motions stay as they are.
    """
    total, rest = dict[int, Mixed](), list[Motion]()
    for motion in motions:
        if not isinstance(motion, Mixed):
            rest.append(motion)
            continue
        plus, minus = motion.plus, motion.minus
        for earlier in reversed(rest):
            if set(earlier.places) & set(motion.names):
                return list(motions)
            plus, minus = (_back(earlier, motion, x) for x in (plus, minus))
        first = total.get(id(motion.form))
        if first is not None:
            plus, minus = plus @ first.plus, minus @ first.minus
        total[id(motion.form)] = Mixed(form=motion.form, plus=plus, minus=minus)
    return [*total.values(), *rest]


def _back(earlier: Motion, motion: Mixed, matrices: Tensor) -> Tensor:
    """Matrices of every block, numbered as before an exchange of heads."""
    symmetry = earlier.symmetry if isinstance(earlier, Rearranged) else None
    if not isinstance(symmetry, Permutation) or not within(motion.form, symmetry):
        return matrices
    assert isinstance(earlier, Rearranged)
    each = motion.form.blocks // len(earlier.what)
    order = (earlier.what[:, None] * each + torch.arange(each)).reshape(-1)
    return matrices[order.argsort().to(matrices.device)]


def shares(motions: Sequence[Motion]) -> dict[int, tuple[int, int]]:
    """Things that stand elsewhere or reflected in the end, and all: by the id of the symmetry."""
    orders = dict[int, Tensor]()
    found = dict[int, tuple[int, int]]()
    for m in motions:
        if isinstance(m, Rearranged):
            key, whole = id(m.symmetry), m.symmetry.dimension
            if isinstance(m.symmetry, Permuting):
                order = orders.get(key, torch.arange(whole + 1))[m.what]
                moved, whole = int((order != torch.arange(whole + 1)).sum()), whole + 1
            else:
                order = orders.get(key, torch.zeros(whole, dtype=torch.long)).clone()
                order[m.what] ^= 1
                moved = int(order.sum())
            orders[key], found[key] = order, (moved, whole)
    return found
