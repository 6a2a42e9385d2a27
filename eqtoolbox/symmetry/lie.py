"""Lie derivatives: the violation of a continuous symmetry per unit of its parameter, no step size.

Blind to what is not connected to the identity (mirrors, quarter turns): finite elements see those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from eqtoolbox.expect.checked import checked
from eqtoolbox.record.record import HOLDS, VIOLATED, Verdict
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.symmetry.actions.action import inside_of
from eqtoolbox.symmetry.actions.tangent import tangent_error, tangent_of
from eqtoolbox.symmetry.claim import Claimed
from eqtoolbox.symmetry.derivative import Derivative
from eqtoolbox.symmetry.each import batch_of_one, one_sample
from eqtoolbox.symmetry.floor import few, noise
from eqtoolbox.symmetry.orbit import (
    Function,
    distance,
    double,
    marked,
    require_inputs,
    respond,
    settled,
)
from eqtoolbox.symmetry.structure import (
    Layout,
    Tree,
    batch_size,
    first,
    on_tensors,
    tensors,
)

FLAT = "the output has no derivative (sort, argmax, rounding): its zero is no invariance"
CUT = (
    "the output follows the input and yet has no derivative by it: the model cuts the graph "
    "(detach, numpy), sorts or rounds; group elements still measure the claim"
)
STRIDE = 0.1  # of the inputs' size: a step after which an output that follows them has changed


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


@checked
def lie_derivative(
    function: Function,
    inputs: Tree,
    symmetry: Claimed,
    *,
    generator: torch.Generator | None = None,
) -> list[LieDerivative]:
    """The Lie derivative L f = J_f(x) X(x) - Y(f(x)) along every generator of the group.

    X and Y are the tangents of the input and output actions, in closed form. Forward mode; where
    an operation has none (grid_sample, fused attention on CPU), twice backward.

    An output that ignores every random direction (rounding, sort order, argmax) has no derivative
    to speak of: the verdict is `unresolved`, never `holds`.

    Cost: one forward and one derivative a generator, together below two forwards for each of
    several, and two on a few samples for the floor and the random direction.

    Args:
        function: as in `equivariance_error`.
        inputs: likewise.
        symmetry: likewise, of a continuous group.
        generator: draws the random direction; a new one with seed 0 unless given.

    Returns:
        One result a generator of the group, in order.

    Raises:
        ValueError: the group has no generators.
        NoTangent: an action knows no derivative.

    Reference: Gruver et al. 2022, arXiv 2210.02984, for the definition.

    Example:
        >>> from eqtoolbox.symmetry.claim import Equivariance
        >>> from eqtoolbox.symmetry.actions.action import trivial
        >>> from eqtoolbox.symmetry.actions.linear import vectors
        >>> from eqtoolbox.symmetry.groups.matrices import SO3
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> cubes = lambda x: x * x.square().sum(-1, keepdim=True)
        >>> {r.verdict for r in lie_derivative(cubes, x, Equivariance(SO3(), vectors, vectors))}
        {'holds'}
        >>> {r.verdict for r in lie_derivative(cubes, x, Equivariance(SO3(), vectors, trivial))}
        {'violated'}
    """
    if in_parts(inputs, symmetry.rows):
        whole = replace(symmetry, rows="samples")
        found: list[LieDerivative] = lie_derivative(
            one_sample(function), batch_of_one(inputs), whole, generator=generator
        )
        return found
    require_inputs(inputs)
    directions = symmetry.group.generators()
    if not directions:
        raise ValueError(
            f"{symmetry.group.name} is discrete: it has no derivative; use equivariance_error"
        )
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    function = marked(function, inputs)
    inputs = on_tensors(lambda x: x.detach(), inputs)
    tangents = [tangent_of(symmetry.input_action, a, inputs) for a in directions]
    derivative = Derivative(lambda x: respond(function, x))
    values, changes = derivative(inputs, tangents)
    values = settled(function, inputs, values)
    layout = None if isinstance(values, Tensor) else Layout.of(values)

    def compared(y: Tree) -> Tensor:
        y = inside_of(symmetry.output_action, y)
        return y if layout is None else layout.pack(y)

    with torch.no_grad():
        base = compared(values)
        seen = noise(lambda x: compared(respond(function, x)), inputs, base, rng)
        answer, note = seen.answer, seen.note
        scale = float(double(base).norm())
        allowed = [compared(tangent_of(symmetry.output_action, a, values)) for a in directions]
    moved = [compared(change) for change in changes]
    inexact = max(tangent_error(a) for a in (symmetry.input_action, symmetry.output_action))
    part = _Part.of(derivative, inputs, moved, compared, rng)
    cut = part.flat and _follows(
        lambda x: compared(respond(function, x)), inputs, base, answer, rng
    )
    results = []
    for index, (along, own) in enumerate(zip(moved, allowed, strict=True)):
        change, right = double(along), double(own)
        rate, size = float((change - right).norm()), float(change.norm() + right.norm())
        free = part.free(tangents[index])
        floor = answer * max(1.0, (part.whole(free) + size) / scale if scale > 0 else 1.0)
        floor = max(floor, inexact * size / scale if scale > 0 else inexact)
        flat = part.flat and float(right.norm()) == 0.0
        verdict, why = _verdict(rate, floor * scale, flat, note)
        if cut and not flat:  # |0 - rho f| is no violation
            verdict, why = "unresolved", CUT
        results.append(
            LieDerivative(
                generator=index,
                rate=rate / math.sqrt(len(base)),
                relative=rate / size if size > 0 else math.nan,
                direction_ratio=part.size_of(along) / free if free > 0 else math.nan,
                floor=floor,
                verdict=verdict,
                mode=derivative.mode,
                note=why,
            )
        )
    return results


@dataclass(frozen=True)
class _Part:
    """How the first few samples answer a random direction, |J u| and |u|."""

    rows: int
    samples: int
    answer: float  # |J u|
    length: float  # |u|
    flat: bool  # no sample answers any direction tried

    @classmethod
    def of(
        cls,
        derivative: "Derivative",
        inputs: Tree,
        moved: list[Tensor],
        compared: Callable[[Tree], Tensor],
        rng: torch.Generator,
    ) -> "_Part":
        samples = batch_size(inputs)
        still = all(float(double(m).norm()) == 0.0 for m in moved)
        rows = samples if still else few(samples)  # that nothing answers, all must say
        try:
            some = first(inputs, rows)
            u = _random_like(some, rng)
            (change,) = derivative(some, [u])[1]
        except (RuntimeError, ValueError, IndexError):  # f holds something as long as the batch
            rows, u = samples, _random_like(inputs, rng)
            (change,) = derivative(inputs, [u])[1]
        answer = float(double(compared(change)).norm())
        return cls(rows, samples, answer, _norm(u), still and answer == 0.0)

    def free(self, tangent: Tree) -> float:
        """|J X| of these samples if X were a direction without meaning."""
        return self.answer * _norm(first(tangent, self.rows)) / self.length

    def size_of(self, moved: Tensor) -> float:
        """|J X| of these samples."""
        return float(double(moved[: self.rows]).norm())

    def whole(self, size: float) -> float:
        """The size of as many samples as the batch has."""
        return size * math.sqrt(self.samples / self.rows)


def _follows(
    function: Callable[[Tree], Tensor],
    inputs: Tree,
    outputs: Tensor,
    noise: float,
    rng: torch.Generator,
) -> bool:
    """Whether a finite step in a random direction changes the output."""
    u = _random_like(inputs, rng)
    step = STRIDE * _norm(inputs) / max(_norm(u), 1e-300)
    pairs = tree_map(lambda x, v: x + step * v if _moves(x) else x, inputs, u)
    with torch.no_grad():
        return distance(function(pairs), outputs) > VIOLATED * noise


def _moves(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


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
        return "unresolved", FLAT
    if rate > VIOLATED * floor:
        return "violated", note
    return ("holds" if rate <= HOLDS * floor and not note else "unresolved"), note
