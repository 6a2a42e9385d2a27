"""Move: one element of a parameter symmetry applied to the live model, for experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.act.function import LiveFunction
from eqtoolbox.act.motion import Exchange, Flow, Motion
from eqtoolbox.act.transaction import carry_out, live, refuse_foreign
from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.statistics import running
from eqtoolbox.weights.discovery import default_loss
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one element of a symmetry did to the parameters."""

    family: str
    name: str
    parameters: int  # tensors that moved
    distance: float  # |T theta - theta|
    norm_before: float  # |theta|^2 of what moved
    norm_after: float

    def __str__(self) -> str:
        return (
            f"moved {self.parameters} parameters along {self.family} ({self.name}) by "
            f"{self.distance:.4g}, norm^2 {self.norm_before:.4g} -> {self.norm_after:.4g}"
        )

    _repr_html_ = notebook.text


@checked
def move(
    model: nn.Module,
    symmetry: ParameterSymmetry,
    coefficients: Tensor | Sequence[float],
    optimizer: Any = None,
    *,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    approximate: bool = False,
    equivariant: bool = False,
) -> Moved:
    """Apply one finite element of a symmetry to the live parameters: theta -> T theta.

    For experiments. Steps of the training go on from an equivalent point, in general in another
    direction: moving towards larger gradients ("teleportation") bought nothing that a larger
    learning rate did not buy, and repeated it destroyed the training.

    Args:
        model: the one that `symmetry` was found in.
        symmetry: of `eqtoolbox.weights.discover(model, ...)`.
        coefficients: of a continuous symmetry c, (dimension,), finite; of a permutation the new
            order, (dimension + 1,), thing k being replaced by thing order[k]; of sign flips 1 or
            -1 for every unit, (dimension,).
        optimizer: one or several of the model's, whose state is moved along.
        batch: of the loss; needed where normalisations keep statistics of what moves.
        loss_fn: as for `eqtoolbox.weights.discover`.
        approximate: move by a symmetry that holds up to an epsilon only.
        equivariant: move by one that keeps the loss only if inputs or outputs move, too.

    Returns:
        How far parameters moved.

    Raises:
        ValueError: coefficients or a symmetry that do not fit, or values that overflow; nothing
            is changed then.
        TypeError: a model or optimizer of a kind that cannot be moved.

    Reference:
        Zhao et al. 2022, Symmetry Teleportation (arXiv 2205.10637), for what this is used for.

    Example:
        >>> from torch import nn
        >>> from eqtoolbox.weights import discover
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = torch.randn(16, 4), torch.arange(16) % 3
        >>> before = net(data[0])
        >>> rescale = discover(net, data)[0]
        >>> done = move(net, rescale, 0.5 * torch.randn(8))
        >>> done.family, torch.allclose(net(data[0]), before, atol=1e-5)
        ('rescale', True)
    """
    inner = live(model)
    _refuse_status(symmetry, approximate, equivariant)
    own, buffers = dict(inner.named_parameters()), dict(inner.named_buffers())
    refuse_foreign(symmetry, own, buffers)
    given = torch.as_tensor(coefficients)
    motion = motion_of(symmetry, given, own)
    also: dict[str, Tensor] = {}
    if batch is not None and isinstance(symmetry, ContinuousSymmetry):
        at = LiveFunction.of(inner, batch, default_loss if loss_fn is None else loss_fn)
        with at.objective.isolated():
            also = at.statistics(motion.moved(at.exact))
    elif running(buffers) and _seen(symmetry):
        raise ValueError(
            f"{symmetry.family} ({symmetry.name}) may move what running statistics are of: give "
            "batch, so that they move along"
        )
    before = {n: own[n].detach().to(torch.float64, copy=True) for n in motion.names}
    said = f"{symmetry.family} ({symmetry.name}) by {float(given.double().norm()):.3g}"
    carry_out(model, motion, optimizer, act="move", said=said, buffers=also)
    after = {n: own[n].detach().double() for n in motion.names}
    return Moved(
        family=symmetry.family,
        name=symmetry.name,
        parameters=sum(not torch.equal(after[n], b) for n, b in before.items()),
        distance=sum(float((after[n] - b).square().sum()) for n, b in before.items()) ** 0.5,
        norm_before=sum(float(b.square().sum()) for b in before.values()),
        norm_after=sum(float(a.square().sum()) for a in after.values()),
    )


def motion_of(symmetry: ParameterSymmetry, given: Tensor, params: dict[str, Any]) -> Motion:
    """The motion by an element, given as `move` takes it.

    Raises:
        ValueError: it is none of the symmetry's group.
        TypeError: a symmetry of a kind whose elements are not known.
    """
    many = symmetry.dimension + isinstance(symmetry, Permuting)
    if given.shape != (many,):
        raise ValueError(
            f"coefficients: expected {many} numbers for {symmetry.family} ({symmetry.name}), got "
            f"shape {tuple(given.shape)}"
        )
    if given.is_complex() or not bool(given.isfinite().all()):
        raise ValueError("expected finite real coefficients, got others")
    if isinstance(symmetry, ContinuousSymmetry):
        device = next((params[n].device for n in symmetry.names if n in params), given.device)
        c = given.detach().to(device, torch.float64)
        return Flow(form=symmetry.form, coefficients=c)
    if isinstance(symmetry, Permuting):
        order = given.long().cpu()
        if not torch.equal(order.sort().values, torch.arange(many)) or bool((order != given).any()):
            raise ValueError(f"expected a permutation of 0 to {many - 1}, got {given.tolist()}")
        return Exchange.of(symmetry, lambda tensors: symmetry.permuted(tensors, order), params)
    if isinstance(symmetry, SignFlip):
        if not bool((given.abs() == 1).all()):
            raise ValueError(f"expected 1 or -1 for every unit, got {given.tolist()}")
        units = (given < 0).nonzero()[:, 0].cpu()
        return Exchange.of(symmetry, lambda tensors: symmetry.flipped(tensors, units), params)
    raise TypeError(f"{type(symmetry).__name__} has elements that cannot be given by numbers")


def _refuse_status(symmetry: ParameterSymmetry, approximate: bool, equivariant: bool) -> None:
    called = f"{symmetry.family} ({symmetry.name})"
    if isinstance(symmetry, ContinuousSymmetry) and symmetry.equivariant and not equivariant:
        what = "inputs" if symmetry.joint else "outputs"
        raise ValueError(f"{called} moves the {what}, too: give equivariant=True to move by it")
    if symmetry.status == "approximate" and not approximate:
        raise ValueError(
            f"{called} holds up to {symmetry.residual:.0e} only: give approximate=True"
        )
    if symmetry.status not in ("verified", "approximate"):
        raise ValueError(
            f"expected a verified symmetry, got {called}, which is {symmetry.status}"
            + (": discover it with verify=True" if symmetry.status == "proposed" else "")
        )


def _seen(symmetry: ParameterSymmetry) -> bool:
    """Whether what a normalisation sees may move by it."""
    return isinstance(symmetry, ContinuousSymmetry) and symmetry.form.balance in (
        "norm one",
        "mean zero",
    )
