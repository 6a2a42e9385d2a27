"""Swap: what each of several processes has for each other one, all at once; nothing is gathered."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def swap(
    into: Tensor,
    given: Tensor,
    arriving: Sequence[int],
    leaving: Sequence[int],
    group: "dist.ProcessGroup | None" = None,
) -> None:
    """All-to-all over a group, of what `Shards.exchange` promises.

    Args:
        into: takes what arrives, (numbers,).
        given: what is sent, (numbers,).
        arriving: how many numbers from each process.
        leaving: how many numbers to each.
        group: of these processes: one of the caller's own, which training does not use.
    """
    dist.all_to_all_single(into, given, [*arriving], [*leaving], group=group)
