"""Verification: proposed parameter symmetries are checked by numbers before they are used.

The laws are linear in the generator at order 1, so one gradient serves every proposal along a
random element of its algebra. At order 0 the product of all transformations is tested at once and
halved where it fails. A proposal that is broken escapes only where its defect is a polynomial or
analytic function that vanishes at the element drawn: with probability zero, up to rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import valued
from eqtoolbox.weights.parameter import (
    ContinuousSymmetry,
    Parameters,
    ParameterSymmetry,
    Status,
)
from eqtoolbox.weights.search.memory import give_back
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.stream import streamed

Loss = Callable[[dict[str, Tensor]], Tensor]
S = TypeVar("S", bound=ParameterSymmetry)


@dataclass(frozen=True)
class Move:
    """A finite transformation of `names`; a separable one moves each by itself."""

    names: frozenset[str]
    separable: bool
    apply: Callable[[Parameters], dict[str, Tensor]]


def move(symmetry: ParameterSymmetry, apply: Callable[[Parameters], dict[str, Tensor]]) -> Move:
    """A finite transformation out of a symmetry's group."""
    return Move(frozenset(symmetry.names), symmetry.separable, apply)


def moved(params: Parameters, moves: Sequence[Move]) -> dict[str, Tensor]:
    """Parameters after one move after the other, those that are not separable last.

    Tensor by tensor, so that never two copies of the whole exist.
    """
    made = {}
    for name in params:
        tensor = params[name]
        for one in moves:
            if one.separable and name in one.names:
                tensor = one.apply({name: tensor})[name]
        made[name] = tensor
        give_back(tensor.numel())
    for one in moves:
        if not one.separable:
            made.update(one.apply(made))
    return made


def limit(dtype: torch.dtype) -> float:
    """Largest residual that counts as rounding."""
    return 1e-10 if dtype == torch.float64 else 1e-4


def judged(symmetry: S, worst: float, dtype: torch.dtype) -> S:
    """The symmetry with its `status` for a residual.

    verified: to rounding (1e-10 in float64, 1e-4 below); approximate: within the family's own
    tolerance (the epsilon of a normalisation layer), and whatever has one where rounding is too
    coarse to tell; broken: otherwise.
    """
    status: Status = "broken"
    exact = dtype == torch.float64 or not symmetry.tolerance  # the rest float32 cannot tell apart
    if worst <= limit(dtype):
        status = "verified" if exact else "approximate"
    elif worst <= symmetry.tolerance:
        status = "approximate"
    return replace(symmetry, status=status, residual=worst)


def draw(symmetry: ContinuousSymmetry, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random coefficients of a symmetry's algebra, `strength` times standard normal."""
    drawn = torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
    return (symmetry.strength * drawn).to(like)


def evaluated(function: Loss, params: Parameters, moves: Sequence[Move] = ()) -> Tensor:
    """The function where `params` are moved."""
    if isinstance(params, Point) and not params.whole:
        give_back()
    with torch.no_grad():
        return valued(function, moved(params, moves))


def change(loss: Loss, params: Parameters, moves: Sequence[Move], value: Tensor) -> float:
    """|L(moved) - L| / |L|, infinite where the loss is not finite there."""
    found = float((evaluated(loss, params, moves) - value).abs() / value.abs().clamp_min(1e-300))
    return found if math.isfinite(found) else math.inf


def joint_changes(
    loss: Loss, params: Parameters, moves: Sequence[Sequence[Move]], value: Tensor, small: float
) -> list[float]:
    """Relative change of the loss for each proposal, all tried together and halved where they fail.

    Args:
        moves: for every proposal the moves to try, as many for each (c and -c).
        small: change up to which a set of proposals passes together.
    """
    if not moves:
        return []
    tries = range(len(moves[0]))
    worst = max(change(loss, params, [m[k] for m in moves], value) for k in tries)
    if worst <= small or len(moves) == 1:
        return [worst] * len(moves)
    half = len(moves) // 2
    parts = (moves[:half], moves[half:])
    return [w for part in parts for w in joint_changes(loss, params, part, value, small)]


def gradients(
    function: Loss,
    params: Point,
    receive: Callable[[Parameters, Parameters], None],
    moves: Sequence[Move] = (),
) -> None:
    """Parameters and gradient at the moved point; zero where one takes no part.

    All at once, or for a large model one after the other: no piece outlives its call of `receive`.
    """
    if not params.whole:
        streamed(function, list(params), lambda n: moved({n: params[n]}, moves)[n], receive)
        return
    leaves = {n: p.detach().requires_grad_() for n, p in moved(params, moves).items()}
    value = function(leaves)
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradient = {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}
    receive({n: p.detach() for n, p in leaves.items()}, gradient)


class Slopes:
    """g . K_c of many symmetries, gathered while the gradient comes in pieces."""

    def __init__(
        self, symmetries: Sequence[ContinuousSymmetry], coefficients: Sequence[Tensor]
    ) -> None:
        self.symmetries, self.coefficients = symmetries, coefficients
        self.dots, self.gradients, self.tangents = ([0.0] * len(symmetries) for _ in range(3))

    def add(self, params: Parameters, gradient: Parameters) -> None:
        """Take one piece of the gradient into account, with the parameters it belongs to."""
        squares = {name: dot(g, g) for name, g in gradient.items()}
        for k, (s, c) in enumerate(zip(self.symmetries, self.coefficients, strict=True)):
            if not gradient.keys() & set(s.names):
                continue
            for name in gradient.keys() & set(s.names):
                t = s.tangent({name: params[name]} if s.separable else params, c)[name]
                self.dots[k] += dot(gradient[name], t)
                self.gradients[k] += squares[name]
                self.tangents[k] += dot(t, t)
                del t  # before the next is made

    def residuals(self, against: Sequence[tuple[float, float]] | None = None) -> list[float]:
        """|g . K - c| / (|g| |K| + scale of c), with (c, scale) of each from `against`."""
        found = []
        for k in range(len(self.symmetries)):
            constant, scale = against[k] if against else (0.0, 0.0)
            total = self.scale(k) + scale
            found.append(abs(self.dots[k] - constant) / total if total > 0 else 0.0)
        return found

    def scale(self, k: int) -> float:
        """|g| |K| of one symmetry, over the parameters that it moves."""
        return math.sqrt(self.gradients[k] * self.tangents[k])


def residuals(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator,
) -> tuple[float, float]:
    """Residuals of order 0 and 1 of the law along a random element of the algebra.

    order 0: |L(T_c theta) - L(theta)| / |L(theta)| at c and -c, order 1: |g . K_c| / (|g| |K_c|),
    with |g| over the moved parameters.
    """
    coefficients = draw(symmetry, params[symmetry.names[0]], generator)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    gradient = {n: torch.zeros_like(params[n]) if g is None else g for n, g in pairs}
    slopes = Slopes([symmetry], [coefficients])
    slopes.add(params, gradient)
    order_0 = max(
        change(loss, params, [move(symmetry, symmetry.flow(c))], value.detach())
        for c in (coefficients, -coefficients)  # a dead unit is flat on one side only
    )
    return order_0, slopes.residuals()[0]


def verified(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator,
) -> ContinuousSymmetry:
    """One symmetry judged by the worse of its two residuals."""
    worst = max(residuals(symmetry, loss, params, generator))
    return judged(symmetry, worst, params[symmetry.names[0]].dtype)


class OutputLaw:
    """g(T theta) = T g(theta), compared per parameter by random projections.

    Each tensor is projected on a product of random vectors, one an axis, so that of a gradient
    only two numbers a tensor are kept.
    """

    def __init__(self, elements: Sequence[Move]) -> None:
        self.elements = elements
        self.sketches: dict[str, float] = {}
        self.sizes: dict[str, float] = {}
        self.differences: dict[str, float] = {}

    def add(self, gradient: Parameters) -> None:
        """A piece of the gradient at theta."""
        names = {n for element in self.elements for n in element.names}
        chosen = {n: g for n, g in gradient.items() if n in names}
        for name, tensor in moved(chosen, self.elements).items():
            self.sketches[name], self.sizes[name] = _sketch(tensor), math.sqrt(dot(tensor, tensor))

    def compare(self, _: Parameters, there: Parameters) -> None:
        """A piece of the gradient at T theta."""
        for name in there.keys() & self.sketches.keys():
            self.differences[name] = abs(_sketch(there[name]) - self.sketches[name])

    def residual(self, names: Sequence[str]) -> float:
        """Largest difference among these tensors, relative to the gradient of all of them."""
        known = [n for n in names if n in self.differences]
        size = math.sqrt(sum(self.sizes[n] ** 2 for n in known))
        return max(self.differences[n] for n in known) / size if size > 0 else 0.0


def _sketch(tensor: Tensor) -> float:
    """Inner product with a product of fixed random vectors of unit size."""
    generator = torch.Generator().manual_seed(0)
    left = tensor
    for length in reversed(tensor.shape):
        vector = torch.randn(length, generator=generator, dtype=torch.float64).to(tensor)
        left = left @ (vector / vector.norm())
    return float(left)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors, summed in float64."""
    if a.dtype == torch.float64:
        return float(a.reshape(-1) @ b.reshape(-1))
    return float((a * b).sum(dtype=torch.float64))
