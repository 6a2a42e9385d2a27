"""Groups: which indices of an axis sum to nothing, as those that one softmax or norm reads do."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.tracing.trace import Trace

_SOFTMAX = ("_softmax", "_log_softmax", "logsumexp")


@dataclass(frozen=True)
class Stretch:
    """Indices of an axis that may be one group: so many, or as many as make so many groups."""

    length: int = 0
    stride: int = 1
    count: int = 1

    def places(self, size: int) -> Iterator[tuple[int, int]]:
        """Length and stride in an axis of this size."""
        length = self.length or size // self.count
        whole = size % length == 0 if length else False
        if not 1 < length <= size or not (self.length or size % self.count == 0):
            return
        if self.stride == 1 or size % (length * self.stride) == 0:
            yield length, self.stride
        if self.length and whole:
            yield length, size // length


def stretches(trace: Trace) -> list[Stretch]:
    """Those that a softmax is over, or a norm that takes off its mean; and all indices together."""
    found = {Stretch()}
    for node in trace.nodes:
        if node.name == "native_group_norm":
            found.add(Stretch(count=node.args[6]))
        elif node.name == "native_layer_norm":
            found.add(Stretch(length=math.prod(node.args[1])))
        elif node.name in _SOFTMAX and node.args[0].shape:
            found |= set(_of_softmax(node.args[0].shape, node.arg(1, "dim")))
    return sorted(found, key=lambda w: (w.length, w.stride, w.count))


def _of_softmax(shape: Sequence[int], dims: int | Sequence[int]) -> Iterator[Stretch]:
    for dim in (dims,) if isinstance(dims, int) else dims:
        axis, stride = dim % len(shape), 1
        for size in (*shape[axis + 1 :], 1):
            yield Stretch(length=shape[axis], stride=stride)
            stride *= size


def grouped(profile: Tensor, tried: Iterable[Stretch], zero: float) -> Tensor:
    """The group of every index, -1 for none: the shortest stretches first, apart from each other.

    Args:
        profile: a slope for every index, (length,).
        tried: stretches.
        zero: sums below this share of the largest slope count as zero.

    Example:
        >>> grouped(torch.tensor([1.0, -1.0, 5.0, 2.0, 4.0, -6.0]), [Stretch(2), Stretch(3)], 1e-6)
        tensor([ 0,  0, -1,  1,  1,  1])
    """
    size, bound = len(profile), zero * float(profile.abs().max())
    groups = torch.full((size,), -1)
    if not bound > 0:
        return groups
    slopes = profile.double().cpu()
    places = {place for stretch in tried for place in stretch.places(size)}
    for length, stride in sorted(places):
        order = torch.arange(size)
        if stride > 1:
            order = order.reshape(-1, length, stride).transpose(1, 2).reshape(-1)
        summed = torch.cat([slopes.new_zeros(1), slopes[order].cumsum(0)])
        starts = ((summed[length:] - summed[:-length]).abs() <= bound).nonzero()[:, 0]
        if stride > 1:
            starts = starts[starts % length == 0]
        for start in starts.tolist():
            own = order[start : start + length]
            if bool((groups[own] < 0).all()) and bool((slopes[own].abs() > bound).any()):
                groups[own] = int(groups.max()) + 1
    return groups
