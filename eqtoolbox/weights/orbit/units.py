"""The units of a discrete symmetry: how large each is and how far each two are from being equal.

A unit's vector u_i is all that it owns: the rows of what makes it, the columns of what reads it.
The transposition T of units i and j has the order parameter |theta - P theta| = |u_i - u_j| /
sqrt(2) where no parameter is owned along two axes, and in general

    2 |theta - P theta|^2 = |theta - T theta|^2 / 2 =: D_ij

which for a matrix A owned along both (a recurrent weight, a convolution inside a residual stream)
counts the entries that cross, A_ii against A_jj and A_ij against A_ji, once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import wide
from eqtoolbox.weights.families.discrete import Permuting, SignFlip, UnitSymmetry
from eqtoolbox.weights.orbit.activity import Activity
from eqtoolbox.weights.parameter import Parameters

BLOCK = 512  # units whose products with all later ones are taken together
TF32 = 2.0**-10  # rounding of products on tensor cores, where they are allowed
DEAD = 1e-4  # of the layer's root mean square; smaller weights or gradients of a unit are none


def count(symmetry: UnitSymmetry) -> int:
    """Number of units."""
    return len(symmetry.slots[0].positions)


def squares(
    symmetry: UnitSymmetry | Permuting, params: Parameters, which: Tensor | None = None
) -> dict[str, Tensor]:
    """|u_i|^2 by what it is made of: one entry, (units,) in float64, a parameter and axis."""
    return {
        key: wide(rows).square().sum(1).cpu().double()
        for key, rows in symmetry.rows(params, which).items()
    }


def sizes(
    symmetry: UnitSymmetry | Permuting, params: Parameters, which: Tensor | None = None
) -> Tensor:
    """|u_i|^2 of all that each unit (of `which`) owns: (units,) in float64."""
    return torch.stack(list(squares(symmetry, params, which).values())).sum(0)


def gaps(symmetry: Permuting, params: Parameters, which: Tensor | None = None) -> Tensor:
    """D_ij of every two units relative to |u_i|^2 + |u_j|^2: (units, units), float64.

    Its root is 0 for equal units, near 1 for unrelated and sqrt(2) for opposite ones. By Gram
    matrices, so that roots below 1e-7 are rounding; NaN where both units are zero.
    """
    gap, _ = _gaps(symmetry, params, which, wide)
    upper = gap.triu_(1)
    return upper + upper.mT


def coarse_gaps(symmetry: Permuting, params: Parameters) -> tuple[Tensor, float]:
    """The same above the diagonal, infinite elsewhere, and by how much it may be off.

    In the parameters' own precision, at least float32: half the time of float64 on a CPU, a
    hundredth on most graphics cards.
    """
    gap, entries = _gaps(symmetry, params, None, _own)
    for start in range(0, len(gap), BLOCK):
        rows = gap[start : start + BLOCK]
        rows[:, :start] = torch.inf
        corner = rows[:, start : start + BLOCK]
        corner.masked_fill_(torch.ones_like(corner).tril() > 0, torch.inf)
    coarse = torch.backends.cuda.matmul.allow_tf32 and gap.is_cuda and gap.dtype == torch.float32
    eps = TF32 if coarse else torch.finfo(gap.dtype).eps
    return gap.nan_to_num_(nan=torch.inf, posinf=torch.inf), 8 * eps * math.sqrt(entries)


def _own(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _gaps(
    symmetry: Permuting,
    params: Parameters,
    which: Tensor | None,
    as_computed: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """The gaps, right above the diagonal only, and how many entries the longest sum in them has."""
    gram, longest = torch.zeros(()), 1
    for rows in symmetry.rows(params, which).values():
        x = as_computed(rows)
        gram = x.new_zeros(len(x), len(x)) if gram.dim() == 0 else gram
        gram = gram.to(torch.promote_types(gram.dtype, x.dtype))
        _add_products(gram, x.to(gram))
        longest = max(longest, x.shape[1])
    squared = gram.diagonal().clone()
    scale = squared[:, None] + squared
    total = gram.mul_(-2).add_(scale)
    for name, axes in symmetry.owned.items() if isinstance(symmetry, UnitSymmetry) else ():
        if len(axes) > 1:
            chosen = axes if which is None else {a: p[which] for a, p in axes.items()}
            total += _crossing(as_computed(params[name].detach()), chosen).to(total)
    return total.clamp_min_(0).div_(scale), longest


def _add_products(total: Tensor, x: Tensor) -> None:
    """Add x x^T on and above the diagonal, in blocks: half of the work of the whole."""
    for start in range(0, len(x), BLOCK):
        end = start + BLOCK
        total[start:end, start:].addmm_(x[start:end], x[start:].mT)


def apart(symmetry: Permuting, params: Parameters, pairs: Tensor) -> list[float]:
    """|u_i - u_j| / sqrt(|u_i|^2 + |u_j|^2) of pairs of units, from the differences themselves.

    Args:
        symmetry, params: of the units.
        pairs: their numbers, (pairs, 2).
    """
    crossed = symmetry.crossed if isinstance(symmetry, UnitSymmetry) else ()
    own, both = {n: params[n] for n in crossed}, torch.zeros(len(pairs), dtype=torch.float64)
    between = both.clone()
    for key, rows in symmetry.rows(params, pairs.reshape(-1)).items():
        x = wide(rows).reshape(len(pairs), 2, -1)
        both += x.square().sum((1, 2)).cpu()
        if key.split("[")[0] not in crossed:
            between += (x[:, 0] - x[:, 1]).square().sum(1).cpu()
    for k, (i, j) in enumerate(pairs[:, :, None] if crossed else ()):
        moved = symmetry.exchange(own, i, j)
        between[k] += sum(_moved(own[n], x) / 2 for n, x in moved.items())
    return [math.sqrt(x) for x in (between / both).tolist()]


def lengths(symmetry: SignFlip, params: Parameters, which: Tensor) -> list[float]:
    """|theta - P theta| of the flip of each unit: the norm of what changes sign."""
    crossed, found = symmetry.crossed, torch.zeros(len(which), dtype=torch.float64)
    own = {n: params[n] for n in crossed}
    for key, rows in symmetry.rows(params, which).items():
        if key.split("[")[0] not in crossed:
            found += wide(rows).square().sum(1).cpu()
    for k, unit in enumerate(which[:, None] if crossed else ()):
        moved = symmetry.flipped(own, unit)
        found[k] += sum(_moved(own[n], x) / 4 for n, x in moved.items())
    return [math.sqrt(x) for x in found.tolist()]


def _moved(x: Tensor, image: Tensor) -> float:
    return float((wide(x.detach()) - wide(image.detach())).square().sum())


def idle(
    symmetry: UnitSymmetry, params: Parameters, gradient: Parameters, activity: Activity
) -> dict[int, str]:
    """Units that do nothing on the batch behind gradient and activity, with the reason.

    A unit is idle when whatever reads it is given zero, or reads it with zero weights: below 1e-4
    of what the unit computes before its non-linearity, or of the layer's weights. Where no product
    that reads it was seen, when its gradient vanishes on all that it owns with weights that do not
    (below 1e-4 of the root mean square over the units); that cannot be said of a layer which no
    gradient reaches.

    Returns:
        "zero PARAMETERS" or "never active" by unit.
    """
    weights, slopes = squares(symmetry, params), squares(symmetry, gradient)
    keys = list(weights)
    zero = {k: _vanishing(weights[k]) for k in keys}
    flat = {k: _vanishing(slopes[k]) for k in keys}
    still = _unheard(symmetry, activity, zero)
    if still is None:
        if all(bool(f.all()) for f in flat.values()):
            return {}
        still = torch.stack([zero[k] | flat[k] for k in keys]).all(0)
    idle = still.nonzero().flatten()
    silent = torch.stack([flat[k] for k in keys]).all(0)[idle].tolist()
    nothing = torch.stack([zero[k] for k in keys])[:, idle].mT.tolist()
    found = {}
    for unit, quiet, each in zip(idle.tolist(), silent, nothing, strict=True):
        none = [k for k, is_zero in zip(keys, each, strict=True) if is_zero]
        blamed = (none and not quiet) or len(none) == len(keys)
        found[unit] = f"zero {', '.join(none)}" if blamed else "never active"
    return found


def _unheard(symmetry: UnitSymmetry, activity: Activity, zero: dict[str, Tensor]) -> Tensor | None:
    """Units of which every reader is given nothing, (units,); None where no reader was seen."""
    readers, makers = [], []
    if any(slot.across > 1 for slot in symmetry.slots):  # what reads these is not looked at
        return None
    for slot in symmetry.slots:
        axis = slot.name, slot.axis
        if axis in activity.made:
            makers.append(activity.made[axis][slot.positions].amax(1))
        elif axis in activity.read:
            unread = zero[slot.name if slot.axis == 0 else f"{slot.name}[{slot.axis}]"]
            readers.append((activity.read[axis][slot.positions].amax(1), unread))
    if not readers:
        return None
    heard = [given for given, _ in readers]
    scale = torch.stack(makers or [h.amax().expand_as(h) for h in heard]).amax(0)
    quiet = [(given <= DEAD * scale) | unread for given, unread in readers]
    return torch.stack(quiet).all(0)


def _vanishing(squared: Tensor) -> Tensor:
    return squared <= DEAD**2 * squared.mean()


def _crossing(tensor: Tensor, axes: dict[int, Tensor]) -> Tensor:
    """Correction of D_ij for what two axes of one parameter both count, (units, units)."""
    (one, rows), (two, columns) = axes.items()
    moved = tensor.movedim((one, two), (0, 1))
    block = moved[rows.to(moved.device)][:, :, columns.to(moved.device)]
    block = block.reshape(*block.shape[:4], -1)  # (units i, entries, units j, entries, rest)
    block = block.transpose(1, 2).flatten(2)  # (i, j, all)
    own = block.diagonal(dim1=0, dim2=1).mT  # (i, all)

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(-1)

    here = own[:, None].expand(block.shape)  # A_ii at (i, j)
    there = own[None].expand(block.shape)  # A_jj
    turned = block.transpose(0, 1)  # A_ji
    twice = apart(here, turned) + apart(block, there) + apart(here, block) + apart(turned, there)
    return apart(here, there) + apart(block, turned) - twice
