"""Hearing: the loss of every step, kept on its device and read at due steps only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from eqtoolbox.linalg.parcel import Parcel

BLOCK = 256  # losses that are stacked at a time
MOST = 12  # numbers that stand for the losses between two due steps


class Hearing:
    """Losses that the loop evaluated: of training, and those of held-out data, without gradients.

    Nothing waits for the device before `told`.

    Example:
        >>> hearing = Hearing()
        >>> for loss in (3.0, 2.0, 1.0):
        ...     hearing.heard(torch.tensor(loss))
        >>> hearing.told(held_out=False)
        [3.0, 2.0, 1.0]
    """

    def __init__(self) -> None:
        self._new: dict[bool, list[Tensor]] = {False: [], True: []}
        self._old: dict[bool, list[Tensor]] = {False: [], True: []}

    def heard(self, loss: Any) -> None:
        """Keep a loss: of held-out data where no gradient is recorded.

        What has no real number of its own is passed over: a loss inside `torch.func.vmap`, of a
        fake or meta tensor, a complex one.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        if loss.is_meta or loss.is_complex() or isinstance(loss, FakeTensor):
            return
        while torch._C._functorch.is_functorch_wrapped_tensor(loss):
            if torch._C._functorch.is_batchedtensor(loss):
                return
            loss = torch._C._functorch.get_unwrapped(loss)
        held_out = not torch.is_grad_enabled()
        new = self._new[held_out]
        new.append(loss.detach().clone())  # the loop may write into its own
        if len(new) >= BLOCK:
            self._old[held_out].append(_stacked(new))
            new.clear()

    def told(self, held_out: bool) -> list[float]:
        """Losses since the last time, in order; of many, few that stand for them.

        Of each stretch the farthest from the median of all is told, so that nothing that stands
        out is lost.
        """
        return self.sent(held_out, Parcel())()

    def sent(self, held_out: bool, parcel: Parcel) -> Callable[[], list[float]]:
        """The same, which go to the host with a parcel and are told when they have arrived."""
        new, old = self._new[held_out], self._old[held_out]
        blocks = [parcel.add(block) for block in (*old, *([_stacked(new)] if new else []))]
        new.clear()
        old.clear()
        return lambda: thinned(torch.cat([b() for b in blocks])).tolist() if blocks else []


def _stacked(losses: list[Tensor]) -> Tensor:
    """On the device of the last; others of another device are copied there."""
    return torch.stack([loss.reshape(()).to(losses[-1].device) for loss in losses])


def thinned(values: Tensor, most: int = MOST) -> Tensor:
    """At most so many of the values, in order: of each stretch its median, of one its farthest.

    Example:
        >>> thinned(torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 1.0]), most=3).tolist()
        [1.0, 9.0, 1.0]
    """
    if len(values) <= most:
        return values
    known = values.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("inf"))
    far = int((known - known.median()).abs().nan_to_num(nan=0.0).argmax())
    parts = torch.tensor_split(values, most)
    kept = [part.median() for part in parts]  # NaN where there is one
    begin = 0
    for k, part in enumerate(parts):
        if begin <= far < begin + len(part):
            kept[k] = values[far]
        begin += len(part)
    return torch.stack(kept)
