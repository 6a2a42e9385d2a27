"""Directional derivatives J_f(x) v of any function of a batch, several directions at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from eqtoolbox.linalg.tangents import jvp
from eqtoolbox.replay.derivatives import twice_differentiable
from eqtoolbox.symmetry.orbit import Function
from eqtoolbox.symmetry.still import still_linear
from eqtoolbox.symmetry.structure import Tree, floating, on_tensors, tensors
from eqtoolbox.symmetry.through import ThroughModel

_stack = torch._C._functorch.get_interpreter_stack
_TOGETHER = 8  # directions in one pass: each holds a batch of activations


class Derivative:
    """f(x) and J_f(x) v: forward mode where it can be evaluated in it, else twice backward.

    Directions share one evaluation of f where its operations can be vectorised over them.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.mode = "forward"

    def __call__(self, inputs: Tree, tangents: list[Tree]) -> tuple[Tree, list[Tree]]:
        """f(x) and its derivative along every tangent, all trees like f(x).

        Args:
            inputs: x, tensors of which the floating-point ones move.
            tangents: directions like x, at least one.
        """
        changes: list[Tree] = []
        value = None
        for start in range(0, len(tangents), _TOGETHER):
            value, some = self._chunk(inputs, tangents[start : start + _TOGETHER])
            changes += some
        return value, changes

    def _chunk(self, inputs: Tree, tangents: list[Tree]) -> tuple[Tree, list[Tree]]:
        points, function = _flat(self.function, inputs)
        arrows = [_like(t, inputs) for t in tangents]
        if self.mode == "forward":
            try:
                if len(arrows) > 1:
                    return _vectorised(function, points, arrows)
                return _forward(function, points, arrows)
            except (NotImplementedError, RuntimeError, ValueError):
                if len(arrows) > 1:
                    return self._one_by_one(inputs, tangents)
                self.mode = "double backward"
        with twice_differentiable(()):
            return _twice_backward(function, points, arrows)

    def _one_by_one(self, inputs: Tree, tangents: list[Tree]) -> tuple[Tree, list[Tree]]:
        found = [self._chunk(inputs, [t]) for t in tangents]
        return found[0][0], [change for _, (change,) in found]


Parts = tuple[Tensor, ...]
Found = tuple[Tree, list[Tree]]


def _forward(function: Callable[..., Tree], points: Parts, arrows: list[Parts]) -> Found:
    with _differentiable(levels=1):
        found: Any = jvp(function, points, arrows[0])
    return found[0], [found[1]]


def _vectorised(function: Callable[..., Tree], points: Parts, arrows: list[Parts]) -> Found:
    def along(*v: Tensor) -> Any:
        return jvp(function, points, v)

    stacked = [torch.stack(parts) for parts in zip(*arrows, strict=True)]
    with _differentiable(levels=2):
        value, change = vmap(along, out_dims=(None, 0))(*stacked)  # type: ignore[arg-type]
    return value, [on_tensors(itemgetter(i), change) for i in range(len(arrows))]


def _twice_backward(function: Callable[..., Tree], points: Parts, arrows: list[Parts]) -> Found:
    """J v as the derivative of w -> J^T w, which is linear, along v."""
    points = tuple(p.clone().requires_grad_() for p in points)
    with torch.enable_grad():
        with ThroughModel():
            value = function(*points)
        parts = [y for y in tensors(value) if y.requires_grad]
        weights = [torch.zeros_like(y, requires_grad=True) for y in parts]
        pulled: tuple[Tensor | None, ...] = ()
        if parts:
            pulled = torch.autograd.grad(
                parts, points, weights, create_graph=True, allow_unused=True
            )
        found = [_paired(pulled, v, weights) for v in arrows]
    flat = {id(y): i for i, y in enumerate(parts)}

    def change(along: list[Tensor | None]) -> Tree:
        def leaf(y: Tensor) -> Tensor:
            part = along[flat[id(y)]] if along and id(y) in flat else None
            return torch.zeros_like(y).detach() if part is None else part.detach()

        return on_tensors(leaf, value)

    return on_tensors(lambda y: y.detach(), value), [change(along) for along in found]


def _paired(
    pulled: tuple[Tensor | None, ...], arrow: Parts, weights: list[Tensor]
) -> list[Tensor | None]:
    pairs = [(p, v) for p, v in zip(pulled, arrow, strict=False) if p is not None]
    total = sum((p * v).sum() for p, v in pairs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return []
    return list(torch.autograd.grad(total, weights, allow_unused=True, retain_graph=True))


def _flat(function: Function, inputs: Tree) -> tuple[Parts, Callable[..., Tree]]:
    """The floating-point parts of x, and f of such parts."""

    def given(*parts: Tensor) -> Tree:
        rest = iter(parts)
        return function(on_tensors(lambda x: next(rest) if x.is_floating_point() else x, inputs))

    return tuple(floating(inputs)), given


def _like(tangent: Tree, inputs: Tree) -> Parts:
    pairs = zip(tensors(inputs), tensors(tangent), strict=True)
    return tuple(v.to(x) for x, v in pairs if x.is_floating_point())


@contextmanager
def _differentiable(levels: int) -> Iterator[None]:
    """No graph for reverse mode, no kernel without a forward derivative, weights that stay."""
    with torch.no_grad(), _Still(levels), twice_differentiable(()):
        yield


class _Still(TorchFunctionMode):
    """Linear layers keep weights that are no part of the derivative, inside attention, too.

    Args:
        levels: transformations of torch.func that are ours. A gradient taken right below them would
            be a number without a tangent; one that torch.func takes below has its own.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self._levels = levels

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.autograd.grad and len(_stack() or ()) <= self._levels:
            raise RuntimeError("a gradient taken inside has no derivative in forward mode")
        return (still_linear if func is F.linear else func)(*args, **(kwargs or {}))
