"""A scalar: the loss in what a loss function returned."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class NotALoss(TypeError):
    """What a loss function returned is no scalar loss."""


def scalar_loss(result: Any) -> Tensor:
    """The scalar a loss function returned, see `loss_tensor`, without dimensions."""
    return loss_tensor(result).reshape(())


def loss_tensor(result: Any) -> Tensor:
    """The tensor of one element in it: itself, `(loss, ...)`, `.loss` or `["loss"]`.

    Raises:
        NotALoss: there is none.
    """
    loss = result
    if isinstance(result, Mapping):
        loss = result.get("loss")
    elif hasattr(result, "loss"):
        loss = result.loss
    elif isinstance(result, (tuple, list)) and result:
        loss = result[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
        raise NotALoss(
            "expected the loss as a scalar tensor, (loss, ...), an object with .loss or a mapping "
            f"with 'loss', got {got}; reduce it, e.g. loss.mean()"
        )
    return loss
