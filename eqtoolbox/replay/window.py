"""A window: the losses that one optimizer step was made of, as one objective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Window(Objective):
    """L(theta) = sum_i w_i L_i(theta) over the micro-batches whose gradients a step used.

    Each loss keeps its own batch, buffers, random state and autocast. What needs one call of the
    model (`inputs`, `predict`, `answer`) speaks of the last. One graph holds the activations of
    all micro-batches: `pieces` and `split` give them one by one.
    """

    parts: tuple[tuple[Objective, float], ...]  # losses and their weights

    @classmethod
    def of(cls, parts: "tuple[tuple[Objective, float], ...]") -> Objective:
        """The objective of these losses: a window, or a single one of weight 1 itself."""
        last, weight = parts[-1]
        if len(parts) == 1 and weight == 1.0:
            return last
        own = {name: getattr(last, name) for name in Objective.__dataclass_fields__}
        return cls(**own, parts=parts)

    def to(self, dtype: torch.dtype) -> "Window":
        return replace(self, dtype=dtype, parts=self._each(lambda part: part.to(dtype)))

    def unmixed(self) -> "Window":
        mixed = self._each(lambda part: part.unmixed())
        return replace(self, autocast=None, mixed=False, parts=mixed)

    def halved(self) -> Objective:
        """Half of the micro-batches with the weight of all, or half of the only one."""
        if len(self.parts) == 1:
            return replace(self, parts=self._each(lambda part: part.halved()))
        kept = self.parts[: len(self.parts) // 2]
        share = sum(w for _, w in self.parts) / sum(w for _, w in kept)
        return Window.of(tuple((part, w * share) for part, w in kept))

    @property
    def single(self) -> Objective:
        """The last loss, where all are calls of the same function; else the sum itself."""
        last, _ = self.parts[-1]
        return last if all(part.loss_fn == last.loss_fn for part, _ in self.parts) else self

    @property
    def terms(self) -> list[tuple[Objective, float]]:
        return list(self.parts)

    @property
    def pieces(self) -> list[Objective]:
        return [replace(self, parts=(part,)) for part in self.parts]

    @property
    def calls(self) -> list[Objective]:
        return [part for part, _ in self.parts]

    def split(self, parts: int) -> list[tuple[Objective, float]]:
        """The micro-batches, which are pieces already; their mean is the whole."""
        count = len(self.parts)
        if count == 1:
            (part, weight), *_ = self.parts
            return [(replace(self, parts=((p, weight),)), n) for p, n in part.split(parts)]
        return [(replace(self, parts=((part, w * count),)), 1.0) for part, w in self.parts]

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """The outputs on all micro-batches, one after the other."""
        return torch.cat([part.outputs(params) for part, _ in self.parts])

    def loss_of_output(
        self, params: Mapping[str, Tensor], output: Any, train: bool = False
    ) -> Tensor:
        rows = output.split(self._rows) if len(self.parts) > 1 else [output]
        return self._sum(lambda part, y: part.loss_of_output(params, y, train=train), list(rows))

    def _scalar(self, params: Mapping[str, Tensor], train: bool) -> Tensor:
        nothing = [None] * len(self.parts)
        return self._sum(lambda part, _: part._scalar(params, train), nothing)

    def _sum(self, term: Callable[[Objective, Any], Tensor], given: list[Any]) -> Tensor:
        terms = [w * term(part, x) for (part, w), x in zip(self.parts, given, strict=True)]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    def _each(
        self, change: Callable[[Objective], Objective]
    ) -> tuple[tuple[Objective, float], ...]:
        return tuple((change(part), w) for part, w in self.parts)

    @cached_property
    def _rows(self) -> list[int]:
        """Length of the model's output on each micro-batch."""
        return [len(part.call.output) for part, _ in self.parts]


def in_pieces(objective: Objective, parts: int) -> Objective:
    """The sum of the losses of the pieces of each batch, where a loss is their mean.

    Args:
        parts: pieces of each batch.
    """
    if parts == 1:
        return objective
    found: list[tuple[Objective, float]] = []
    for call, weight in objective.terms:
        pieces = call.split(parts)
        whole = sum(count for _, count in pieces)
        found += [(piece, weight * count / whole) for piece, count in pieces]
    return Window.of(tuple(found))
