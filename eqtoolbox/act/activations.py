"""Activations: what units answer on a batch, found at the modules whose parameters they own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Place = tuple[str, str]  # a module's name, and "in" or "out"
Seen = dict[Place, Tensor]  # (rows, channels), float64


class Answers:
    """Of two models to the same inputs."""

    def __init__(self, model: nn.Module, goal: Seen, here: Seen) -> None:
        self.goal, self.here = goal, here
        self._modules = dict(model.named_modules())

    def pairs(
        self, name: str, axis: int, positions: Tensor, through: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Centred answers along a parameter's axis, of both models: (units, entries, rows).

        Of all entries together the mean square is one.

        Args:
            name: of the parameter.
            axis: of the parameter.
            positions: (units, entries) along it.
            through: what an elementwise gain is given counts, too.
        """
        module, _, kind = name.rpartition(".")
        for side in sides(self._modules.get(module), kind, axis, through):
            if (module, side) in self.goal and (module, side) in self.here:
                both = [self._of(x[module, side], positions) for x in (self.goal, self.here)]
                if both[0].shape == both[1].shape:
                    yield both[0], both[1]

    def _of(self, seen: Tensor, positions: Tensor) -> Tensor:
        where = positions.to(seen.device)
        if int(where.max()) >= seen.shape[1]:
            return seen.new_zeros(0)
        centred = seen - seen.mean(0)
        return (centred / centred.square().mean().sqrt().clamp_min(1e-300)).T[where]


def sides(module: nn.Module | None, kind: str, axis: int, through: bool) -> tuple[str, ...]:
    """Where channels of a module lie along an axis of its parameter."""
    if isinstance(module, (nn.Linear, _ConvNd)):
        grouped = getattr(module, "groups", 1) > 1 or getattr(module, "transposed", False)
        if kind == "bias" or (kind == "weight" and axis == 0 and not grouped):
            return ("out",)
        return ("in",) if kind == "weight" and axis == 1 and not grouped else ()
    if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return ("out", "in") if through else ("out",)
    if isinstance(module, nn.Embedding) and axis == 1:
        return ("out",)
    return ()


@contextmanager
def seen(model: nn.Module) -> Iterator[Seen]:
    """Scope in which calls of the modules leave what they were given and gave."""
    found: dict[Place, list[Tensor]] = {}
    result: Seen = {}
    with ExitStack() as scope:
        for name, module in model.named_modules():
            if sides(module, "weight", 1, True) or sides(module, "weight", 0, True):
                scope.callback(module.register_forward_hook(_noting(found, name)).remove)
        yield result
    result.update({place: torch.cat(parts) for place, parts in found.items()})


def _noting(found: Mapping[Place, list[Tensor]], name: str) -> Callable[..., None]:
    def note(module: nn.Module, given: Any, made: Any) -> None:
        last = isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding))
        for side, x in (("in", given[0] if given else None), ("out", made)):
            if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
                rows = x.detach().movedim(-1 if last else 1, -1)
                found.setdefault((name, side), []).append(  # type: ignore[attr-defined]
                    rows.reshape(-1, rows.shape[-1]).double()
                )

    return note
