"""The Gauss-Newton matrix Jᵀ(∇²ℓ)J of a model and an output loss, by reverse mode alone."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.graph import (
    check_scalar,
    differentiating,
    filled,
    leaves,
    product_accuracy,
)
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Space, Vector

Model = Annotated[Callable[[dict[str, Tensor]], Tensor], takes(1, "of a dict of parameters")]
OutputLoss = Annotated[Callable[[Tensor], Tensor], takes(1, "of the outputs")]


@checked
def gauss_newton(model_function: Model, output_loss: OutputLoss, params: Vector) -> LinearOperator:
    """G = Jᵀ(∇²ℓ)J at θ, J the Jacobian of the outputs; H without the curvature of the model.

    G is positive semidefinite for a convex ℓ, and the Fisher matrix for cross-entropy. The product
    Jv is the derivative of u ↦ Jᵀu along v, so nothing beyond a second backward is asked of the
    model; all graphs are kept between products.

    Args:
        model_function: dict of parameters -> outputs, one tensor; may have a `scope` as in
            `hessian`, which then covers the output loss too.
        output_loss: outputs -> real scalar ℓ.
        params: θ by name.

    Raises:
        ValueError: the outputs depend on no parameter; ℓ is no real scalar of the outputs.
        FloatingPointError: a parameter or the loss is not finite.

    Reference:
        Schraudolph 2002, Fast curvature matrix-vector products for second-order gradient descent.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> G = gauss_newton(lambda p: x @ p["w"], lambda y: (y**2).sum() / 2, {"w": torch.ones(2)})
        >>> G.dense().tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    return GaussNewton(model_function, output_loss, params)


class GaussNewton(LinearOperator):
    """Jᵀ(∇²ℓ)J at fixed parameters; see `gauss_newton`."""

    def __init__(
        self, model_function: Model, output_loss: Callable[[Tensor], Tensor], params: Vector
    ) -> None:
        super().__init__(Space.of(params), product_accuracy(params))
        self._model = model_function
        self._leaves = leaves(params)
        self._list = list(self._leaves.values())
        with differentiating(model_function, self._leaves):
            dtypes = {name: p.dtype for name, p in params.items()}
            outputs = model_function({n: x.to(dtypes[n]) for n, x in self._leaves.items()})
            if not outputs.requires_grad:
                raise ValueError("the model's outputs must depend on the parameters it is given")
            self._outputs = outputs
            self._dual = torch.zeros_like(outputs).requires_grad_()  # u, where Jᵀu is linear
            pulled = torch.autograd.grad(
                outputs, self._list, self._dual, create_graph=True, allow_unused=True
            )
            self._pulled = [x if x is None or x.requires_grad else None for x in pulled]
            self._free = outputs.detach().clone().requires_grad_()
            value = output_loss(self._free)
            check_scalar(value)
            (self._slope,) = torch.autograd.grad(value, self._free, create_graph=True)

    def _product(self, v: Vector) -> dict[str, Tensor]:
        used = [(x, v[n]) for n, x in zip(self._leaves, self._pulled, strict=True) if x is not None]
        with differentiating(self._model, self._leaves):
            (tangent,) = torch.autograd.grad(
                [x for x, _ in used], self._dual, [y for _, y in used], retain_graph=True
            )
            rows: tuple[Tensor | None, ...] = (None,) * len(self._list)
            if self._slope.requires_grad:
                (curved,) = torch.autograd.grad(
                    self._slope, self._free, tangent, retain_graph=True, materialize_grads=True
                )
                rows = torch.autograd.grad(
                    self._outputs, self._list, curved, retain_graph=True, allow_unused=True
                )
        return filled(self._leaves, rows)
