"""The units of a discrete symmetry: how large each is and how far each two are from being equal.

A unit's vector u_i is all that it owns: the rows of what makes it, the columns of what reads it.
The transposition T of units i and j has the order parameter |theta - P theta| = |u_i - u_j| /
sqrt(2) where no parameter is owned along two axes, and in general

    2 |theta - P theta|^2 = |theta - T theta|^2 / 2 =: D_ij

which for a matrix A owned along both (a recurrent weight, a convolution inside a residual stream)
counts the entries that cross, A_ii against A_jj and A_ij against A_ji, once.
"""

import torch
from torch import Tensor

from eqtoolbox.weights.families.discrete import Permuting, UnitSymmetry
from eqtoolbox.weights.orbit.activity import Activity
from eqtoolbox.weights.parameter import Parameters

DEAD = 1e-4  # of the layer's root mean square; smaller weights or gradients of a unit are none


def count(symmetry: UnitSymmetry) -> int:
    """Number of units."""
    return len(symmetry.slots[0].positions)


def squares(symmetry: UnitSymmetry | Permuting, params: Parameters) -> dict[str, Tensor]:
    """|u_i|^2 by what it is made of: one entry, (units,) in float64, a parameter and axis."""
    return {key: rows.square().sum(1) for key, rows in symmetry.rows(params).items()}


def gaps(symmetry: Permuting, params: Parameters) -> Tensor:
    """D_ij of every two units relative to |u_i|^2 + |u_j|^2: (units, units), float64.

    Its root is 0 for equal units, near 1 for unrelated and sqrt(2) for opposite ones. By Gram
    matrices, so that roots below 1e-7 are rounding; NaN where both units are zero.
    """
    units = symmetry.dimension + 1
    total = torch.zeros(units, units, dtype=torch.float64)
    for rows in symmetry.rows(params).values():
        gram = (rows @ rows.mT).cpu()
        total += gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    for name, axes in symmetry.owned().items() if isinstance(symmetry, UnitSymmetry) else ():
        if len(axes) > 1:
            total += _crossing(params[name], axes)
    sizes = torch.stack([s.cpu() for s in squares(symmetry, params).values()]).sum(0)
    scale = sizes[:, None] + sizes
    return torch.where(scale > 0, total.clamp_min(0) / scale, torch.nan)


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
    found = {}
    for unit in still.nonzero().flatten().tolist():
        none = [k for k in keys if zero[k][unit]]
        silent = not none or all(flat[k][unit] for k in keys)
        if silent and len(none) < len(keys):
            found[unit] = "never active"
        else:
            found[unit] = f"zero {', '.join(none)}"
    return found


def _unheard(symmetry: UnitSymmetry, activity: Activity, zero: dict[str, Tensor]) -> Tensor | None:
    """Units of which every reader is given nothing, (units,); None where no reader was seen."""
    readers, makers = [], []
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
    return (squared <= DEAD**2 * squared.mean()).cpu()


def _crossing(tensor: Tensor, axes: dict[int, Tensor]) -> Tensor:
    """Correction of D_ij for what two axes of one parameter both count, (units, units)."""
    (one, rows), (two, columns) = axes.items()
    moved = tensor.detach().movedim((one, two), (0, 1)).double()
    block = moved[rows.to(moved.device)][:, :, columns.to(moved.device)]
    block = block.reshape(*block.shape[:4], -1)  # (units i, entries, units j, entries, rest)
    block = block.transpose(1, 2).flatten(2).cpu()  # (i, j, all)
    own = block.diagonal(dim1=0, dim2=1).mT  # (i, all)

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(-1)

    here = own[:, None].expand(block.shape)  # A_ii at (i, j)
    there = own[None].expand(block.shape)  # A_jj
    turned = block.transpose(0, 1)  # A_ji
    twice = apart(here, turned) + apart(block, there) + apart(here, block) + apart(turned, there)
    return apart(here, there) + apart(block, turned) - twice
