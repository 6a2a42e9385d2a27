"""The Hessian of a loss as an operator: exact products by differentiating the gradient's graph.

The graph of one gradient is kept and differentiated once per product, which costs 2 gradients in
floating point operations, the least for an exact product (1.5 where the first layer needs no input
gradient); forward over reverse and rebuilt graphs cost 3.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Annotated, Self

from torch import Tensor

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import Unexpected, fitted
from eqtoolbox.expect.kinds import Positive
from eqtoolbox.linalg.forward import ForwardGradient
from eqtoolbox.linalg.graph import GradientGraph, Loss, leaves, product_accuracy
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Space, Vector, add, finite
from eqtoolbox.linalg.vectors import scale as scaled
from eqtoolbox.linalg.widened import smooth_differences

logger = logging.getLogger("eqtoolbox")


@checked
def hessian(
    loss: Loss | Sequence[Loss],
    params: Vector,
    *,
    weights: Annotated[Sequence[float] | None, OWN] = None,
    retain: bool | None = None,
    forward: bool = False,
    accuracy: Positive | None = None,
    scale: Positive = 1.0,
    copy: bool = True,
) -> "Hessian":
    """H = ∇²L(θ) for L = Σ w_i L_i / Σ w_i, each product exact to rounding.

    What a loss detaches is held fixed: H is the second derivative of the rest, and symmetric.
    Where a second derivative is NaN though the gradient is finite (the norm at 0), products are
    differences of gradients if these are smooth there; `differenced` says so, and `accuracy`.

    Args:
        loss: pure function of a dict of parameters, giving a scalar; or one per batch. It must give
            the same value each time it is called. If it has a method `scope(params)`, the context
            manager that this returns is active around every forward and every backward.
        params: θ by name. Half precision parameters become float32 leaves that are cast inside the
            graph, so vectors are float32.
        weights: the true weight of each loss, for means the number of samples (or of valid
            tokens) behind it. Needed as soon as there is more than one loss.
        retain: keep the graphs between products. True for one loss; for several False, so that
            only one graph is alive at a time and each product costs one gradient more.
        forward: carry vectors forward through the gradient's computation instead of differentiating
            its graph: nothing is retained, and it is faster for convolutions under CUDA. Not every
            operation can.
        accuracy: relative error of a product, above which Lanczos calls H not symmetric; default
            √eps of the parameters. Give 0.1 for a float32 model under bfloat16 autocast.
        scale: of the loss while it is differentiated, taken out again; 65536 for a model under
            float16 autocast, as its gradient scaler starts. Made smaller where products overflow.
        copy: False where nothing writes to θ as long as products are asked for: it is not copied.

    Raises:
        ValueError: the loss is no real scalar, depends on no parameter or contains a
            once_differentiable function; weights do not fit.
        NotImplementedError: an operation has no forward derivative, in a product with `forward`.
        FloatingPointError: the loss, a parameter or its gradient is not finite, or a product and
            the gradient is not smooth; says in which operation that begins.

    Reference:
        Pearlmutter 1994, Fast exact multiplication by the Hessian.

    Example:
        >>> import torch
        >>> quadratic = lambda p: (torch.tensor([3.0, 1.0]) * p["x"] ** 2).sum() / 2
        >>> with hessian(quadratic, {"x": torch.ones(2)}) as H:
        ...     H({"x": torch.tensor([1.0, 1.0])})["x"].tolist(), H.loss_value
        ([3.0, 1.0], 2.0)
    """
    return Hessian(
        loss,
        params,
        weights=weights,
        retain=retain,
        forward=forward,
        accuracy=accuracy,
        scale=scale,
        copy=copy,
    )


class Hessian(LinearOperator):
    """Second derivative of a loss at fixed parameters; see `hessian`.

    Attributes:
        differenced: why products are differences of gradients; empty while they are exact.
        instead: called with that when it happens; logs a warning.
        by: what multiplies whole vectors in place of a graph, such as a compiled program.
    """

    def __init__(
        self,
        loss: Loss | Sequence[Loss],
        params: Vector,
        *,
        weights: Sequence[float] | None = None,
        retain: bool | None = None,
        forward: bool = False,
        accuracy: float | None = None,
        scale: float = 1.0,
        copy: bool = True,
    ) -> None:
        accuracy = product_accuracy(params) if accuracy is None else accuracy
        super().__init__(Space.of(params), accuracy)
        losses = [loss] if callable(loss) else list(loss)
        points, dtypes = leaves(params, copy), {name: p.dtype for name, p in params.items()}
        graph = ForwardGradient if forward else GradientGraph
        self._graphs = [graph(f, points, dtypes, scale) for f in losses]
        self._weights = _normalised(weights, len(losses))
        self._retain = len(losses) == 1 if retain is None else retain
        self._first: tuple[float, dict[str, Tensor]] | None = None
        self._losses, self._params = losses, dict(params)
        self._differences: LinearOperator | None = None
        self.differenced = ""
        self.instead: Callable[[str], object] = _log
        self.by: Callable[[Vector], dict[str, Tensor]] | None = None

    @property
    def loss_value(self) -> float:
        """L(θ)."""
        return self._value_and_gradient()[0]

    @property
    def gradient(self) -> dict[str, Tensor]:
        """∇L(θ), detached; equal to the training gradient, at no extra cost."""
        return self._value_and_gradient()[1]

    def release(self, forget: bool = False) -> None:
        """Free the graphs, and with `forget` the gradient; who asks later builds them again."""
        for graph in self._graphs:
            graph.release()
        self._first = None if forget else self._first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _value_and_gradient(self) -> tuple[float, dict[str, Tensor]]:
        if self._first is None:
            value, total = 0.0, None
            for graph, w in self._weighted():
                value += w * graph.value
                total = _plus(total, w, graph.gradient)
            self._first = value, total or {}
        return self._first

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return self._block_product(v)

    @property
    def error_products(self) -> int:
        return 0 if self._differences is None else self._differences.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return (
            super().product_error(v)
            if self._differences is None
            else self._differences.product_error(v)
        )

    def _block_product(self, v: Vector) -> dict[str, Tensor]:
        if self._differences is None:
            whole = self.by is not None and len(v) == len(self.space.like)
            total = self.by(v) if self.by is not None and whole else None
            for graph, w in () if whole else self._weighted():
                total = _plus(total, w, graph.product(v))
            if total is not None and finite(total):
                return total
        return self._instead(v)

    def _instead(self, v: Vector) -> dict[str, Tensor]:
        """The product by differences, where the exact one is not finite."""
        if self._differences is not None:
            return self._differences._block_product(v)
        whole = v if v.keys() == self.space.like.keys() else None
        found = next(filter(None, (g.not_finite(whole) for g in self._graphs)), "")
        why = found or "the second derivative is not finite"
        if len(self._losses) > 1:
            raise FloatingPointError(why)
        try:
            differences = smooth_differences(self._losses[0], self._params, self._padded(v))
            product = differences._block_product(v)
        except (ValueError, FloatingPointError) as error:
            raise FloatingPointError(f"{why}; and there are no differences: {error}") from error
        self._differences, self.differenced = differences, why
        self.instead(why)
        self.accuracy = max(self.accuracy, differences.accuracy)
        return product

    def _weighted(self) -> Iterator[tuple[GradientGraph, float]]:
        for graph, w in zip(self._graphs, self._weights, strict=True):
            yield graph, w
            if not self._retain:
                graph.release()


def _log(why: str) -> None:
    logger.warning("%s. Finite differences are smooth there and stand in for it", why)


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    if count == 0:
        raise ValueError("hessian needs at least one loss, got none")
    if weights is None and count > 1:
        raise ValueError(
            f"weights must be given for {count} losses: the number of samples (or valid tokens) "
            "behind each; unequal batches with equal weights give another Hessian"
        )
    w = [1.0] if weights is None else weights
    try:
        w = fitted("weights", w, Sequence[Positive])
    except Unexpected:
        w = []
    if len(w) != count:
        raise ValueError(f"weights must be {count} positive finite numbers, got {weights}")
    return [x / sum(w) for x in w]


def _plus(total: Vector | None, weight: float, part: Vector) -> dict[str, Tensor]:
    """total + weight · part; `part` itself where that is all, without a copy."""
    if total is None:
        return dict(part) if weight == 1.0 else scaled(weight, part)
    return add(total, part, weight)
