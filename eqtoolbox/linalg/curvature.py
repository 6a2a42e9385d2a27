"""The Hessian of a loss as an operator: exact products by differentiating the gradient's graph.

The graph of one gradient is kept and differentiated once per product, which costs 2 gradients in
floating point operations, the least for an exact product (1.5 where the first layer needs no input
gradient); forward-mode and rebuilt graphs cost 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Space, Vector, add, scale

Loss = Callable[[dict[str, Tensor]], Tensor]


def hessian(
    loss: Loss | Sequence[Loss],
    params: Vector,
    *,
    weights: Sequence[float] | None = None,
    retain: bool | None = None,
) -> "Hessian":
    """H = ∇²L(θ) for L = Σ w_i L_i / Σ w_i, each product exact to rounding.

    Args:
        loss: pure function of a dict of parameters, giving a scalar; or one per batch. It must give
            the same value each time it is called. If it has a method `scope(params)`, the context
            manager that this returns is active around every forward and every backward.
        params: θ by name. They are copied; the copies are the leaves. Half precision parameters
            become float32 leaves that are cast inside the graph, so vectors are float32.
        weights: the true weight of each loss, for means the number of samples (or of valid
            tokens) behind it. Needed as soon as there is more than one loss.
        retain: keep the graphs between products. True for one loss; for several False, so that
            only one graph is alive at a time and each product costs one gradient more.

    Raises:
        ValueError: the loss is no real scalar or depends on no parameter; weights do not fit.
        FloatingPointError: the loss, a parameter or a product is not finite.

    Reference:
        Pearlmutter 1994, Fast exact multiplication by the Hessian.

    Example:
        >>> quadratic = lambda p: (torch.tensor([3.0, 1.0]) * p["x"] ** 2).sum() / 2
        >>> with hessian(quadratic, {"x": torch.ones(2)}) as H:
        ...     H({"x": torch.tensor([1.0, 1.0])})["x"].tolist(), H.loss_value
        ([3.0, 1.0], 2.0)
    """
    return Hessian(loss, params, weights=weights, retain=retain)


class Hessian(LinearOperator):
    """Second derivative of a loss at fixed parameters; see `hessian`."""

    def __init__(
        self,
        loss: Loss | Sequence[Loss],
        params: Vector,
        *,
        weights: Sequence[float] | None = None,
        retain: bool | None = None,
    ) -> None:
        super().__init__(Space.of(params))
        losses = [loss] if callable(loss) else list(loss)
        self._leaves = leaves(params)
        self._graphs = [_Graph(f, self._leaves, params) for f in losses]
        self._weights = _normalised(weights, len(losses))
        self._retain = len(losses) == 1 if retain is None else retain
        self._first: tuple[float, dict[str, Tensor]] | None = None

    @property
    def loss_value(self) -> float:
        """L(θ)."""
        return self._value_and_gradient()[0]

    @property
    def gradient(self) -> dict[str, Tensor]:
        """∇L(θ), detached; equal to the training gradient, at no extra cost."""
        return self._value_and_gradient()[1]

    def release(self) -> None:
        """Free the graphs; a later product builds them again."""
        for graph in self._graphs:
            graph.release()

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
            values, gradients = [], []
            for graph, w in self._weighted():
                values.append(w * graph.value)
                gradients.append(scale(w, graph.gradient))
            self._first = sum(values), _sum(gradients)
        return self._first

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return self._block_product(v)

    def _block_product(self, v: Vector) -> dict[str, Tensor]:
        parts = [scale(w, graph.product(v)) for graph, w in self._weighted()]
        return _sum(parts)

    def _weighted(self) -> "Iterator[tuple[_Graph, float]]":
        for graph, w in zip(self._graphs, self._weights, strict=True):
            yield graph, w
            if not self._retain:
                graph.release()


class _Graph:
    """One loss, its gradient, and the graph that made it."""

    def __init__(self, loss: Loss, leaves: dict[str, Tensor], params: Vector) -> None:
        self._loss, self._leaves = loss, leaves
        self._dtypes = {name: p.dtype for name, p in params.items()}
        self._built: tuple[Tensor, dict[str, Tensor]] | None = None

    @property
    def value(self) -> float:
        return self._build()[0].item()

    @property
    def gradient(self) -> dict[str, Tensor]:
        return {name: g.detach() for name, g in self._build()[1].items()}

    def product(self, v: Vector) -> dict[str, Tensor]:
        """The gradient of ⟨∇L, v⟩ with respect to the names of `v`."""
        names = [n for n, g in self._build()[1].items() if n in v and g.requires_grad]
        gradients = [self._build()[1][n] for n in names]
        wanted = {n: self._leaves[n] for n in v}
        if not names:  # the loss uses none of them
            return {n: torch.zeros_like(x) for n, x in wanted.items()}
        with differentiating(self._loss, self._leaves):
            rows = torch.autograd.grad(
                gradients,
                list(wanted.values()),
                [v[n] for n in names],
                retain_graph=True,
                allow_unused=True,
            )
        if any(row is None for row in rows):
            _refuse_once_differentiable(gradients)
        pairs = zip(wanted.items(), rows, strict=True)
        return {n: torch.zeros_like(x) if row is None else row for (n, x), row in pairs}

    def release(self) -> None:
        self._built = None

    def _build(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self._built is None:
            with differentiating(self._loss, self._leaves):
                value = self._loss({n: x.to(self._dtypes[n]) for n, x in self._leaves.items()})
                check_scalar(value)
                # once_differentiable functions show in the graph only if the seed has a gradient
                seed = torch.ones_like(value).requires_grad_()
                rows = torch.autograd.grad(
                    value, list(self._leaves.values()), seed, create_graph=True, allow_unused=True
                )
            if all(row is None for row in rows):
                raise ValueError(_INDEPENDENT)
            pairs = zip(self._leaves.items(), rows, strict=True)
            self._built = value, {n: torch.zeros_like(x) if g is None else g for (n, x), g in pairs}
        return self._built


_INDEPENDENT = (
    "the loss must depend on the parameters it is given, but none of them has a gradient; compute "
    "it from the dict that is passed in, for example by torch.func.functional_call"
)


def leaves(params: Vector) -> dict[str, Tensor]:
    """Detached copies of `params` in at least float32 that require gradients.

    Raises:
        ValueError: no parameters, or one that is not real floating point.
        FloatingPointError: a parameter is not finite.
    """
    space = Space.of(params)
    with torch.inference_mode(False):  # a tensor made in inference mode can never have a gradient
        copies = {n: p.detach().to(space.like[n].dtype, copy=True) for n, p in params.items()}
    bad = [n for n, p in copies.items() if not bool(p.isfinite().all())]
    if bad:
        raise FloatingPointError(f"parameters must be finite, got NaN or infinity in {bad[:5]}")
    return {n: p.requires_grad_() for n, p in copies.items()}


def check_scalar(value: Tensor) -> None:
    """Raise unless `value` is a finite real scalar that depends on something."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = (
            f"{value.dtype} of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise ValueError(f"the loss must be a real scalar tensor, got {got}; reduce it by .mean()")
    if not bool(value.isfinite()):
        raise FloatingPointError(f"the loss must be finite, got {value.item()}")
    if not value.requires_grad:
        raise ValueError(_INDEPENDENT)


@contextmanager
def differentiating(function: object, params: dict[str, Tensor]) -> Iterator[None]:
    """Gradients on, whatever the caller's mode, inside the function's own `scope` if it has one."""
    scope: Callable[[dict[str, Tensor]], AbstractContextManager[object]] | None
    scope = getattr(function, "scope", None)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        nullcontext() if scope is None else scope(params),
    ):
        yield


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    if count == 0:
        raise ValueError("hessian needs at least one loss, got none")
    if weights is None and count > 1:
        raise ValueError(
            f"weights must be given for {count} losses: the number of samples (or valid tokens) "
            "behind each; unequal batches with equal weights give another Hessian"
        )
    w = [1.0] if weights is None else [float(x) for x in weights]
    if len(w) != count or not all(0 < x < float("inf") for x in w):
        raise ValueError(f"weights must be {count} positive finite numbers, got {w}")
    return [x / sum(w) for x in w]


def _sum(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total = dict(parts[0])
    for part in parts[1:]:
        total = add(total, part)
    return total


def _refuse_once_differentiable(gradients: Sequence[Tensor]) -> None:
    """Raise if the graph holds a function that hides its derivative from a second backward."""
    seen, stack = set(), [g.grad_fn for g in gradients]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in ("Error", "torch::autograd::Error", "DelayedError"):
            raise ValueError(
                "the loss contains a function marked once_differentiable, which has no second "
                "derivative; its Hessian would silently miss terms; use finite_difference"
            )
        stack.extend(parent for parent, _ in node.next_functions)
