"""Lie derivatives: the violation of a continuous symmetry per unit of its parameter, no step size.

Blind to what is not connected to the identity (mirrors, quarter turns): finite elements see those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from eqtoolbox.record import HOLDS, VIOLATED, Verdict
from eqtoolbox.symmetry.actions import inside_of
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.floor import noise
from eqtoolbox.symmetry.orbit import Function, double, require_finite, require_inputs, respond
from eqtoolbox.symmetry.structure import Layout, Tree, on_tensors, tensors
from eqtoolbox.symmetry.tangent import tangent_of

_FLAT = "the output has no derivative (sort, argmax, rounding): its zero is no invariance"


@dataclass(frozen=True, kw_only=True)
class LieDerivative:
    """How an output changes along one generator beyond what its own action allows."""

    generator: int  # index in group.generators()
    rate: float  # rms over samples of |J X - Y f|, output units per radian, pixel, ...
    relative: float  # rate / (|J X| + |Y f|), [0, 1]; 1 for every violated invariance
    direction_ratio: float  # |J X| |u| / (|J u| |X|), u random: << 1 invariant, about 1 nothing
    floor: float  # of `rate` over |f|, and of direction_ratio: what rounding makes of them
    verdict: Verdict
    mode: str  # "forward" or "double backward"
    note: str = ""


def lie_derivative(
    function: Function,
    inputs: Tree,
    symmetry: Equivariance,
    *,
    generator: torch.Generator | None = None,
) -> list[LieDerivative]:
    """The Lie derivative L f = J_f(x) X(x) - Y(f(x)) along every generator of the group.

    X and Y are the tangents of the input and output actions, in closed form. Forward mode; where
    an operation has none (grid_sample, fused attention on CPU), twice backward.

    An output that ignores every random direction (rounding, sort order, argmax) has no derivative
    to speak of: the verdict is `unresolved`, never `holds`.

    Cost: below two forwards a generator, and three for the floor and the random direction.

    Args:
        function, inputs, symmetry: as in `equivariance_error`.
        generator: draws the random direction; a new one with seed 0 unless given.

    Returns:
        One result a generator of the group, in order.

    Raises:
        ValueError: the group has no generators.
        NoTangent: an action knows no derivative.

    Reference: Gruver et al. 2022, arXiv 2210.02984, for the definition.

    Example:
        >>> from eqtoolbox.symmetry.actions import trivial
        >>> from eqtoolbox.symmetry.linear import vectors
        >>> from eqtoolbox.symmetry.matrices import SO3
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> cubes = lambda x: x * x.square().sum(-1, keepdim=True)
        >>> {r.verdict for r in lie_derivative(cubes, x, Equivariance(SO3(), vectors, vectors))}
        {'holds'}
        >>> {r.verdict for r in lie_derivative(cubes, x, Equivariance(SO3(), vectors, trivial))}
        {'violated'}
    """
    require_inputs(inputs)
    directions = symmetry.group.generators()
    if not directions:
        raise ValueError(
            f"{symmetry.group.name} is discrete: it has no derivative; use equivariance_error"
        )
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    inputs = on_tensors(lambda x: x.detach(), inputs)
    with torch.no_grad():
        outputs = on_tensors(torch.clone, respond(function, inputs))
        require_finite(outputs, "from f(x)")
        layout = None if isinstance(outputs, Tensor) else Layout.of(outputs)

        def compared(y: Tree) -> Tensor:
            y = inside_of(symmetry.output_action, y)
            return y if layout is None else layout.pack(y)

        base = compared(outputs)
        answer, note = noise(lambda x: compared(respond(function, x)), inputs, base, rng)
    derivative = Derivative(lambda x: compared(respond(function, x)), inputs)
    u = _random_like(inputs, rng)
    along_u, length_u = double(derivative(u)).norm(), _norm(u)
    scale = float(double(base).norm())
    results = []
    for index, a in enumerate(directions):
        x_tangent = tangent_of(symmetry.input_action, a, inputs)
        moved = double(derivative(x_tangent))
        with torch.no_grad():
            allowed = double(compared(tangent_of(symmetry.output_action, a, outputs)))
        rate, length = float((moved - allowed).norm()), _norm(x_tangent)
        size = float(moved.norm() + allowed.norm())
        free = float(along_u) * length / length_u  # |J X| of a direction without meaning
        floor = answer * max(1.0, (free + size) / scale if scale > 0 else 1.0)
        flat = float(along_u) == 0.0 and float(allowed.norm()) == 0.0
        verdict, why = _verdict(rate, floor * scale, flat, note)
        results.append(
            LieDerivative(
                generator=index,
                rate=rate / math.sqrt(len(base)),
                relative=rate / size if size > 0 else math.nan,
                direction_ratio=float(moved.norm()) / free if free > 0 else math.nan,
                floor=floor,
                verdict=verdict,
                mode=derivative.mode,
                note=why,
            )
        )
    return results


class Derivative:
    """J_f(x) v for any v, forward mode where every operation has it, else twice backward."""

    def __init__(self, function: Callable[[Any], Tensor], inputs: Tree) -> None:
        self.function, self.inputs = function, inputs
        self.moving = [i for i, x in enumerate(tensors(inputs)) if x.is_floating_point()]
        self.mode = "forward"

    def __call__(self, tangent: Tree) -> Tensor:
        points = [tensors(self.inputs)[i] for i in self.moving]
        arrows = [tensors(tangent)[i].to(points[k]) for k, i in enumerate(self.moving)]
        if self.mode == "forward":
            try:
                change: Tensor = jvp(self._at, tuple(points), tuple(arrows))[1]
                return change.detach()
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" not in str(error) and "derivative" not in str(error):
                    raise
                self.mode = "double backward"
        points = [p.clone().requires_grad_() for p in points]
        with torch.enable_grad():
            output = self._at(*points)
            dummy = torch.zeros_like(output, requires_grad=True)
            if not output.requires_grad:
                return torch.zeros_like(output)
            pulled = torch.autograd.grad(
                output, points, dummy, create_graph=True, allow_unused=True
            )
            pairs = [(p, v) for p, v in zip(pulled, arrows, strict=True) if p is not None]
            total = sum((p * v).sum() for p, v in pairs)
            assert isinstance(total, Tensor)
            (result,) = torch.autograd.grad(total, dummy, allow_unused=True)
        return torch.zeros_like(output) if result is None else result.detach()

    def _at(self, *points: Tensor) -> Tensor:
        given = iter(points)
        tree = on_tensors(lambda x: next(given) if x.is_floating_point() else x, self.inputs)
        return self.function(tree)


def _random_like(inputs: Tree, rng: torch.Generator) -> Tree:
    def draw(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=rng, device=rng.device, dtype=torch.float64).to(x)

    return on_tensors(draw, inputs)


def _norm(tree: Tree) -> float:
    parts = [double(x).square().sum() for x in tensors(tree) if x.is_floating_point()]
    return math.sqrt(float(torch.stack([p.cpu() for p in parts]).sum()))


def _verdict(rate: float, floor: float, flat: bool, note: str) -> tuple[Verdict, str]:
    if flat:
        return "unresolved", _FLAT
    if rate > VIOLATED * floor:
        return "violated", note
    return ("holds" if rate <= HOLDS * floor and not note else "unresolved"), note
