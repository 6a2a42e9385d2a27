"""The graph of one gradient, kept so that it can be differentiated once more."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import takes
from eqtoolbox.linalg.not_finite import not_finite
from eqtoolbox.linalg.tape import nodes
from eqtoolbox.linalg.vectors import Space, Vector, norm
from eqtoolbox.world.reducing import agreed

Loss = Annotated[Callable[[dict[str, Tensor]], Tensor], takes(1, "of a dict of parameters")]

SMALLER = 16.0  # step down of a scale that overflows
SMALLEST = 2.0**-24  # below it float16 has nothing left
_INDEPENDENT = (
    "the loss must depend on the parameters it is given, but none of them has a gradient; compute "
    "it from the dict that is passed in, for example by torch.func.functional_call"
)


class GradientGraph:
    """One loss at fixed leaves: its value, its gradient, and products with its Hessian.

    Built at the first use, and again after `release`.

    Args:
        scale: what the loss is multiplied by while it is differentiated, as a gradient scaler does
            it; a power of two, made smaller as long as something overflows. 1: not at all.
    """

    def __init__(
        self,
        loss: Loss,
        leaves: dict[str, Tensor],
        dtypes: dict[str, torch.dtype],
        scale: float = 1.0,
    ) -> None:
        self._loss, self._leaves, self._dtypes = loss, leaves, dtypes
        self._half = scale != 1.0  # some of it is float16, whose numbers end at 65504
        self._scale = scale
        self._built: tuple[Tensor, dict[str, Tensor]] | None = None

    @property
    def value(self) -> float:
        """L(θ)."""
        return self._build()[0].item()

    @property
    def gradient(self) -> dict[str, Tensor]:
        """∇L(θ), detached."""
        return self._unscaled({name: g.detach() for name, g in self._build()[1].items()})

    def product(self, v: Vector) -> dict[str, Tensor]:
        """The gradient of ⟨∇L, v⟩ with respect to the names of `v`."""
        wanted = {n: self._leaves[n] for n in v}
        while True:
            rows = self._product(v, wanted)
            if self._fits(rows):
                return self._unscaled(filled(wanted, rows))
            self._smaller()

    def _product(self, v: Vector, wanted: dict[str, Tensor]) -> Sequence[Tensor | None]:
        gradient = self._build()[1]
        names = [n for n, g in gradient.items() if n in v and g.requires_grad]
        if not names:  # the loss uses none of them
            return [None] * len(wanted)
        with differentiating(self._loss, self._leaves):
            return torch.autograd.grad(
                [gradient[n] for n in names],
                list(wanted.values()),
                [v[n] for n in names],
                retain_graph=True,
                allow_unused=True,
            )

    def release(self) -> None:
        """Free the graph."""
        self._built = None

    def not_finite(self, v: Vector | None = None) -> str:
        """Where the loss, its gradient or its product with `v` stops being finite; "" if unseen."""
        model = getattr(self._loss, "model", None)
        call = lambda p: self._loss(self._cast(p))
        with suppress(RuntimeError), differentiating(self._loss, self._leaves):
            return not_finite(call, self._leaves, v, model)
        return ""

    def _cast(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: x.to(self._dtypes[n]) for n, x in params.items()}

    def _build(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self._built is None:
            with differentiating(self._loss, self._leaves):
                value = self._loss(self._cast(self._leaves))
                try:
                    check_scalar(value)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error}; {self.not_finite()}") from None
                rows = self._rows(value)
                gradient = filled(self._leaves, rows)
            if all(row is None for row in rows):
                raise ValueError(_INDEPENDENT)
            if not self._fits(rows):
                self._smaller()
                return self._build()
            _refuse_once_differentiable(list(gradient.values()))
            if not math.isfinite(norm({n: g.detach() for n, g in gradient.items()})):
                raise FloatingPointError(self.not_finite() or "the gradient is not finite")
            self._built = value.detach(), gradient
        return self._built

    def _rows(self, value: Tensor) -> Sequence[Tensor | None]:
        """The gradient, with a graph of its own."""
        # once_differentiable functions show in the graph only if the seed has a gradient
        seed = torch.full_like(value, self._scale).requires_grad_()
        return torch.autograd.grad(
            value, list(self._leaves.values()), seed, create_graph=True, allow_unused=True
        )

    def _fits(self, rows: Sequence[Tensor | None]) -> bool:
        """Whether nothing overflows that a smaller scale could save."""
        if not self._half or self._scale < SMALLEST:
            return True
        here = all(row is None or bool(row.isfinite().all()) for row in rows)
        return agreed(self._leaves, here)

    def _unscaled(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: x / self._scale for n, x in found.items()} if self._half else found

    def _smaller(self) -> None:
        """Build the graph again at a smaller scale."""
        self._scale /= SMALLER
        self.release()


def leaves(params: Vector, copy: bool = True) -> dict[str, Tensor]:
    """Detached copies of `params` in at least float32 that require gradients.

    Args:
        params: θ by name.
        copy: False where nothing writes to them meanwhile: of float32 and wider ones no copy is
            made then.

    Raises:
        ValueError: no parameters, or one that is not real floating point.
        FloatingPointError: a parameter is not finite.
    """
    space = Space.of(params)
    with torch.inference_mode(False):  # a tensor made in inference mode can never have a gradient
        copies = {
            n: p.detach().to(space.like[n].dtype, copy=copy or p.is_inference())
            for n, p in params.items()
        }
    if not math.isfinite(norm(copies)):
        bad = [n for n, p in copies.items() if not bool(p.isfinite().all())]
        raise FloatingPointError(f"parameters must be finite, got NaN or infinity in {bad[:5]}")
    return {n: p.requires_grad_() for n, p in copies.items()}


def product_accuracy(params: Vector) -> float:
    """Relative error to expect of a product computed in the precision of `params`: √eps."""
    Space.of(params)
    return math.sqrt(max(torch.finfo(p.dtype).eps for p in params.values()))


def filled(like: dict[str, Tensor], rows: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """`rows` under the names of `like`, dense, zeros where there is None."""
    pairs = zip(like.items(), rows, strict=True)
    return {n: torch.zeros_like(x) if row is None else _dense(row) for (n, x), row in pairs}


def _dense(row: Tensor) -> Tensor:
    return row.to_dense() if row.layout != torch.strided else row


def check_scalar(value: Tensor) -> None:
    """Raise unless `value` is a finite real scalar that depends on something."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        tensor = isinstance(value, Tensor)
        got = f"{value.dtype} {tuple(value.shape)}" if tensor else type(value).__name__
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
    if scope is None and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        yield
        return
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        nullcontext() if scope is None else scope(params),
    ):
        yield


def _refuse_once_differentiable(gradients: Sequence[Tensor]) -> None:
    """Raise if the graph holds a function that hides its derivative from a second backward."""
    if any(node.name() == "torch::autograd::Error" for node in nodes(gradients)):
        raise ValueError(
            "the loss contains a function marked once_differentiable, which has no second "
            "derivative; its Hessian would silently miss terms; use finite_difference"
        )
