"""Here: finite transformations of what one process holds, where they act within its stretches."""

from collections.abc import Callable

import torch
from torch import Tensor

from eqtoolbox.weights.forms.diagonal import Diagonal, Leg
from eqtoolbox.weights.forms.form import Form
from eqtoolbox.weights.forms.linear import LinearForm, Term
from eqtoolbox.weights.forms.stack import Parameters
from eqtoolbox.world.shards import Layout, Piece


def flow_here(
    form: Form, coefficients: Tensor, layout: Layout
) -> Callable[[Parameters], dict[str, Tensor]] | None:
    """T_c as a map of the pieces that are held here, of those that are given; None: there is none.

    Scales and shifts move every entry by itself; what mixes rows asks for rows that others hold.
    """
    if not isinstance(form, (Diagonal, LinearForm)):
        return None
    parts = form.legs if isinstance(form, Diagonal) else form.terms
    for part in parts:
        cut = layout.get(part.name)
        if cut is not None and cut.dim and (isinstance(part, Term) or not _of_one(part, cut)):
            return None

    def moved(tensors: Parameters) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for part in parts:
            if part.name in tensors:
                old = made.get(part.name, tensors[part.name])
                piece = layout.get(part.name, Piece(old.shape, None, 0, 0))
                made[part.name] = (
                    _scaled(part, coefficients, old, piece)
                    if isinstance(part, Leg)
                    else _shifted(part, coefficients, old, piece)
                )
        return made

    return moved


def _of_one(leg: Leg, piece: Piece) -> bool:
    """Whether the leg is along all of a tensor, or along one axis of it."""
    return leg.length == 1 or (leg.axis is not None and leg.length == piece.whole[leg.axis])


def _scaled(leg: Leg, coefficients: Tensor, held: Tensor, piece: Piece) -> Tensor:
    factor = leg.along(coefficients).exp().to(held).reshape(-1)
    if leg.length == 1:
        return held * factor
    assert leg.axis is not None, "what scales all of a tensor has one factor"
    if _of_one(leg, piece):
        if piece.dim == leg.axis:
            factor = factor[piece.start : piece.stop]
        shape = [-1 if axis == leg.axis else 1 for axis in range(held.dim())]
        return held * factor.reshape(shape)
    if piece.dim is not None and leg.axis == 0:  # the first one, with others joined to it
        step = leg.length // piece.whole[0]
        factor = factor[piece.start * step : piece.stop * step]
    if not held.numel():
        return held
    rows = held.reshape(-1, len(factor), leg.after)
    return (rows * factor[:, None]).reshape(held.shape)


def _shifted(term: Term, coefficients: Tensor, held: Tensor, piece: Piece) -> Tensor:
    once = term.once(coefficients, held.new_empty(()).expand(piece.whole))
    before, stretches, _, after = once.shape
    if piece.dim is not None and before == 1 and piece.whole[0] > 1:
        rows = torch.arange(piece.start, piece.stop, device=held.device)
        once = once[0, rows * stretches // piece.whole[0]]  # (rows, 1, after)
    elif piece.dim is not None:
        each = before // piece.whole[0]
        once = once[piece.start * each : piece.stop * each]
    if not held.numel():
        return held
    return (held.reshape(*once.shape[:-2], -1, after) + once).reshape(held.shape)
