"""Together: several batches in one evaluation of f, where f treats its samples one by one."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from eqtoolbox.replay.gradients import valued
from eqtoolbox.symmetry.floor import Noise, few, noisy
from eqtoolbox.symmetry.orbit import Function, Respond, distance, require_outputs
from eqtoolbox.symmetry.structure import Tree, batch_size, first, on_tensors, tensors

NUMBERS = 2**20  # made by the operations of one evaluation, up to which batches are joined:
LAUNCHED = 2**24  # what fits the caches of a CPU, and what keeps an accelerator busy
SHARE = 4  # batches are so many times what is evaluated again to see whether that is right


class Together:
    """f of batches that come one after the other, evaluated several at a time.

    Only right where a sample's output depends on nothing but itself: not with statistics of the
    batch, contrast between samples, nodes of graphs. Twice looked at: a few samples alone were
    answered as among all (`Noise.alone`), and the first samples of x, which close each joined
    batch, must be answered as in f(x), to rounding. What fails goes on one by one, as does what
    makes many numbers, where nothing is saved: memory grows by no more than 2**20 of them on a
    CPU, 2**24 elsewhere.

    Args:
        function: f.
        inputs, outputs: x and f(x).
        seen: of f near x.
    """

    def __init__(self, function: Function, inputs: Tree, outputs: Tree, seen: Noise) -> None:
        self._function, self._inputs, self._outputs = function, inputs, outputs
        self._samples = batch_size(inputs)
        made = max(seen.numbers, 1) * self._samples
        joins = seen.alone and SHARE * few(self._samples) <= self._samples
        on_cpu = all(x.device.type == "cpu" for x in tensors(inputs))
        self.at_once = (NUMBERS if on_cpu else LAUNCHED) // made if joins else 1

    def __call__(self, respond: Respond, batches: Iterator[Tree]) -> Iterator[Tree]:
        """f at every batch, in order.

        Args:
            respond: f of one batch.
            batches: made as they are asked for.
        """
        while some := list(islice(batches, max(self.at_once, 1))):
            yield from self._joined(some) or map(respond, some)

    def _joined(self, batches: list[Tree]) -> list[Tree]:
        """f of all in one evaluation; none where that is not what f is of each."""
        if len(batches) < 2:
            return []
        known = first(self._outputs, few(self._samples))
        try:
            batch = concatenated([*batches, first(self._inputs, few(self._samples))])
            found = require_outputs(valued(self._function, batch), batch)
            parts = _cut(found, [self._samples] * len(batches) + [few(self._samples)])
            same = distance(parts.pop(), known) <= noisy(_eps(known))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            same = False  # f holds something as long as the batch
        if not same:
            self.at_once = 1
            return []
        return parts


def concatenated(trees: list[Tree]) -> Tree:
    """The samples of all, one after the other.

    Raises:
        ValueError: they differ in more than their numbers.
    """
    flat, specs = zip(*map(tree_flatten, trees), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise ValueError("batches of different structure")
    return tree_unflatten([_leaf(leaves) for leaves in zip(*flat, strict=True)], specs[0])


def _leaf(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], Tensor):
        return torch.cat(list(leaves))
    if any(leaf is not leaves[0] for leaf in leaves):
        raise ValueError("batches hold different things beside their tensors")
    return leaves[0]


def _cut(tree: Tree, lengths: list[int]) -> list[Tree]:
    """The inverse of `concatenated`."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    pairs = zip(lengths, ends, strict=True)
    return [on_tensors(lambda x, a=end - n, b=end: x[a:b], tree) for n, end in pairs]  # type: ignore[misc]


def _eps(tree: Tree) -> float:
    leaves, _ = tree_flatten(tree)
    return max(torch.finfo(x.dtype).eps for x in leaves if isinstance(x, Tensor))
