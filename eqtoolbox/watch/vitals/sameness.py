"""Sameness: whether the labels that a batch brings are all equal."""

from collections.abc import Iterable

from torch import Tensor


def are_alike(targets: Tensor, batch: Iterable[Tensor]) -> bool:
    """Whether all samples have one target, and the batch brings it.

    Targets that the loss makes, as zeros for a residual or ones for what is to look real, are no
    labels: no tensor of the batch is of their one value.

    Example:
        >>> import torch
        >>> ones, x = torch.ones(8, 1), torch.randn(8, 3)
        >>> are_alike(ones, [x, ones]), are_alike(ones, [x]), are_alike(x, [x])
        (True, False, False)
    """
    if targets.dim() == 0 or len(targets) < 2 or not targets.numel():
        return False
    if not bool((targets == targets[:1]).all()):
        return False
    one = targets.detach()[0].double()
    given = (x.detach() for x in batch if x.dim() and x.numel() % one.numel() == 0 and x.numel())
    return any(bool((x.double().reshape(-1, *one.shape) == one).all()) for x in given)
