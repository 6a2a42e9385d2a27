"""Forward over reverse: the derivative of a gradient along a vector, carried along its computation.

It costs 3 gradients in floating point operations where a retained graph costs 2, and asks for
forward derivatives of backward operations instead of backward ones: on some hardware, such as
convolutions under CUDA, those are so much faster that it wins. Nothing is retained.
"""

from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from eqtoolbox.linalg.graph import GradientGraph, check_scalar, differentiating
from eqtoolbox.linalg.tangents import dual_level
from eqtoolbox.linalg.vectors import Vector


class ForwardGradient(GradientGraph):
    """`GradientGraph` whose products carry v through forward and backward pass.

    Raises:
        NotImplementedError: an operation has no forward derivative.

    Example:
        >>> x = torch.tensor([1.0, 2.0]).requires_grad_()
        >>> cubic = ForwardGradient(lambda p: (p["x"] ** 3).sum(), {"x": x}, {"x": x.dtype})
        >>> cubic.product({"x": torch.tensor([1.0, 1.0])})["x"].tolist()
        [6.0, 12.0]
    """

    def _product(self, v: Vector, wanted: dict[str, Tensor]) -> Sequence[Tensor | None]:
        with dual_level():
            along = {n: _dual(x, v[n]) if n in v else x for n, x in self._leaves.items()}
            with differentiating(self._loss, along):
                value = self._loss(self._cast(along))
                check_scalar(value)
                rows = torch.autograd.grad(
                    value,
                    list(wanted.values()),
                    torch.full_like(value, self._scale),
                    allow_unused=True,
                )
            return [_tangent(row) for row in rows]

    def _rows(self, value: Tensor) -> Sequence[Tensor | None]:
        """The gradient alone: nobody differentiates it."""
        seed = torch.full_like(value, self._scale)
        return torch.autograd.grad(value, list(self._leaves.values()), seed, allow_unused=True)


def _dual(x: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(x, tangent)  # type: ignore[no-untyped-call]
    return dual


def _tangent(row: Tensor | None) -> Tensor | None:
    """The derivative that a gradient carries, detached; None where it carries none."""
    if row is None:
        return None
    tangent: Tensor | None = forward_ad.unpack_dual(row).tangent  # type: ignore[no-untyped-call]
    return None if tangent is None else torch.zeros_like(tangent).add_(tangent.detach())
