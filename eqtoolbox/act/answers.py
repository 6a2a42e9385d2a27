"""Answers: what units say on a batch, found at the modules whose parameters they own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from eqtoolbox.act.assignment import Likeness, Pair
from eqtoolbox.weights.families.discrete import Permuting, SignFlip, UnitSymmetry
from eqtoolbox.weights.families.experts import ExpertPermutation
from eqtoolbox.weights.forms.gram import MatrixLeg

Place = tuple[str, str]  # a module's name, and "in" or "out"
Seen = dict[Place, Tensor]  # (channels, rows), centred, float64


class Answers(Likeness):
    """Correlations of what channels of two models are given and give on the same inputs.

    A symmetry keeps the function, so that it only relabels, reflects and turns answers.
    """

    def __init__(self, model: nn.Module, goal: Seen, here: Seen) -> None:
        self.goal, self.here = goal, here
        self.modules = dict(model.named_modules())

    def units(self, symmetry: Permuting | SignFlip) -> Iterator[tuple[tuple[str, int], Pair]]:
        owned = dict[str, dict[int, Tensor]]()
        if isinstance(symmetry, UnitSymmetry):
            owned = symmetry.owned
        elif isinstance(symmetry, ExpertPermutation):
            every = torch.arange(symmetry.dimension + 1)[:, None]
            owned = {name: {0: every} for name in symmetry.stacked}
        for name, axes in owned.items():
            for axis, positions in axes.items():
                for a, b in self._at(name, axis, isinstance(symmetry, Permuting)):
                    where = positions.to(a.device)
                    if int(where.max()) < len(a):
                        yield (name, axis), (_normed(a[where], (1, 2)), _normed(b[where], (1, 2)))

    def blocks(self, leg: MatrixLeg) -> Iterator[Pair]:
        for a, b in self._at(leg.name, leg.axis, False):
            where = leg.positions.to(a.device)  # (blocks, copies, d)
            if int(where.max()) < len(a):
                both = (x[where].transpose(1, 2).flatten(2) for x in (a, b))
                first, second = (_normed(x, (1, 2)) for x in both)
                yield first, second

    def _at(self, name: str, axis: int, through: bool) -> Iterator[Pair]:
        module, _, kind = name.rpartition(".")
        for side in channels(self.modules.get(module), kind, axis, through):
            if (module, side) in self.goal and (module, side) in self.here:
                yield self.goal[module, side], self.here[module, side]


def _normed(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Of unit length; what is silent stays zero."""
    size = x.square().sum(axes, keepdim=True).sqrt()
    return torch.where(size > 1e-9 * size.max(), x / size, 0.0)


def channels(module: nn.Module | None, kind: str, axis: int, through: bool) -> tuple[str, ...]:
    """Where the channels along an axis of a module's parameter lie, in what it is given or gives.

    Args:
        module: that has the parameter.
        kind: the parameter's name in it.
        axis: of the parameter.
        through: what an elementwise gain is given has the same channels.
    """
    if isinstance(module, (nn.Linear, _ConvNd)):
        if kind == "bias":
            return ("out",)
        plain = getattr(module, "groups", 1) == 1 and not getattr(module, "transposed", False)
        return {0: ("out",), 1: ("in",)}.get(axis, ()) if plain and kind == "weight" else ()
    if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return ("out", "in") if through else ("out",)
    return ("out",) if isinstance(module, nn.Embedding) and axis == 1 else ()


@contextmanager
def seen(model: nn.Module) -> Iterator[Seen]:
    """Scope after which the result has what modules were given and gave in it."""
    found: dict[Place, list[Tensor]] = {}
    result: Seen = {}
    with ExitStack() as scope:
        for name, module in model.named_modules():
            if any(channels(module, "weight", axis, True) for axis in (0, 1)):
                scope.callback(module.register_forward_hook(_noting(found, name)).remove)
        yield result
    for place, parts in found.items():
        rows = torch.cat(parts)
        result[place] = (rows - rows.mean(0)).mT


def _noting(found: dict[Place, list[Tensor]], name: str) -> Callable[..., None]:
    def note(module: nn.Module, given: Any, made: Any) -> None:
        last = isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding))
        for side, x in (("in", given[0] if given else None), ("out", made)):
            if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
                rows = x.detach().movedim(-1 if last else 1, -1)
                found.setdefault((name, side), []).append(rows.reshape(-1, rows.shape[-1]).double())

    return note
