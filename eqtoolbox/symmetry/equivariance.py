"""The equivariance error: how far a function is from f(S_g x) = R_g f(x), floor and verdict."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.record import HOLDS, VIOLATED, Verdict
from eqtoolbox.symmetry.actions import Action, inside_of, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.floor import RANDOM_NOTE, noise, round_trip
from eqtoolbox.symmetry.group import Element, Group
from eqtoolbox.symmetry.orbit import (
    Function,
    OrbitMoments,
    double,
    gap,
    orbit,
    require_finite,
    require_inputs,
    respond,
    square,
    value,
)
from eqtoolbox.symmetry.structure import Layout, Tree, first, on_tensors, tensors

_UNRELATED = math.sqrt(2.0)  # relative error of a function that knows nothing of the group


@dataclass(frozen=True, kw_only=True)
class EquivarianceResult:
    """How far a function is from equivariance; read the numbers together, each alone misleads."""

    relative_error: float  # [0, inf], 0 holds, sqrt(2) unrelated; NaN: all outputs are zero
    stderr: float  # of relative_error over group samples; 0 when enumerated, NaN for one sample
    worst: float  # largest relative error of one element used
    worst_element: Element  # the element of `worst`
    orbit_variance: float  # [0, 1], 0 invariant, 1 noise of g; NaN: cannot be said
    orbit_variance_floor: float  # what rounding alone makes of it; NaN as above
    floor: float  # relative error that rounding, noise and the actions alone produce
    verdict: Verdict  # of relative_error against the floor
    samples: int  # non-identity elements used
    enumerated: bool  # True: these are all of them
    percent_of_loss: float | None = None  # %, None without a loss; NaN when the loss is zero
    mean_square: float = math.nan  # of f(S_g x) - R_g f(x) per compared number, one tensor only
    consistency: float | None = None  # [0, 1], same argmax as f(x); for (batch, K >= 2), R trivial
    parts: Mapping[str, float] = field(default_factory=dict)  # relative error of each output tensor
    note: str = ""  # what to mend before the numbers can be trusted

    def decibels(self, peak: float = 2.0) -> float:
        """EQ-T or EQ-R: peak signal-to-noise of the violation, 20 log10(peak / rms error), in dB.

        Args:
            peak: range of the output values; 2 for images in [-1, 1].

        Returns:
            dB, larger is better, infinite for no violation; NaN for several output tensors.

        Reference: Karras et al. 2021, arXiv 2106.12423, appendix E.
        """
        if self.mean_square == 0.0:
            return math.inf
        return 20.0 * math.log10(peak) - 10.0 * math.log10(self.mean_square)


@torch.no_grad()
def equivariance_error(
    function: Function,
    inputs: Tree,
    symmetry: Equivariance,
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    check: bool = True,
) -> EquivarianceResult:
    """Relative violation of f(S_g x) = R_g f(x), its share of the output variance, and a verdict.

        relative_error = sqrt(E |f(S_g x) - R_g f(x)|^2 / E |R_g f(x)|^2)     over g != e and x
        orbit_variance = E_x Var_g f_g / Var_{x,g} f_g,   f_g(x) = R_g^-1 f(S_g x),  over all g, x
        percent_of_loss = 100 (E_g l(f_g) - l(E_g f_g)) / E_g l(f_g)    over e and the elements used

    Elements: all of G but e when there are at most `samples` of them, otherwise `samples`
    independent uniform ones. Then the standard error is that of the delta method, orbit_variance
    is a ratio of unbiased estimates, percent_of_loss is low by about 1 / (samples + 1) of itself.

    floor: the largest of (1) the answer |f(x (1 + eps randn)) - f(x)| / |f(x)| to a change of x by
    its rounding, eps being that of the inputs' dtype; (2) the difference of two runs on the same x;
    (3) the round trips |S^-1 S x - x| / |x| and the same of R; (4) eps of the coarsest dtype among
    the outputs and the operations inside, so that autocast is seen (TF32 is not: switch it off).
    The first two come from the first few samples: one run sees both, and the run that tells them
    apart is made only when the answer is large.

    verdict: `holds` up to 3 floors, `violated` above 10, else `unresolved` (rerun in float64).
    Never `holds` when the function is random, nor when the floor is so high (0.14) that not even an
    unrelated function, with its error of sqrt(2), would be called violated. Scaling f changes none.

    Dicts, tuples and lists of tensors are batches too: give actions for them with `Each`. Output
    tensors then count alike, whatever their scales, and `parts` has the error of each.

    Cost: at most `samples` + 3 forwards, without gradients; two of them on a few samples.

    Args:
        function: f, (batch, ...) -> (batch, ...), deterministic; it gets copies of the inputs.
        inputs: x, (batch, ...), floating point, or a tree of tensors, some of them so.
        symmetry: the claim.
        samples: group elements at most, >= 1.
        generator: draws elements and perturbations; a new one with seed 0 unless given.
        loss: convex and >= 0, outputs -> one number, with the targets of `inputs` inside.
        check: verify the actions first; switch it off where the same shapes passed before.

    Raises:
        TypeError: inputs or outputs are not floating-point tensors.
        ValueError: empty batch, samples < 1, outputs of another batch size, a wrong action.
        FloatingPointError: outputs are not finite.

    Reference: the laws in Yang & Ziyin 2025, arXiv 2512.21447; percent of loss in arXiv 2512.02303.

    Example:
        >>> from eqtoolbox.symmetry.actions import quarter_turn
        >>> from eqtoolbox.symmetry.group import Cyclic
        >>> x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> turn = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> equivariance_error(lambda x: x.abs().sum((1, 2, 3))[:, None], x, turn).verdict
        'holds'
        >>> equivariance_error(lambda x: x[:, 0, 0], x, turn).verdict
        'violated'
    """
    require_inputs(inputs)
    if samples < 1:
        raise ValueError(
            f"samples must be >= 1, got {samples}; leave the probe out to measure none"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    inputs = on_tensors(lambda x: x.detach(), inputs)
    outputs = on_tensors(torch.clone, respond(function, inputs))  # f may reuse its buffer
    require_finite(outputs, "from f(x)")
    if check:
        symmetry.check(inputs, outputs)
    elements, enumerated = _draw(symmetry.group, samples, generator)
    layout = None if isinstance(outputs, Tensor) else Layout.of(outputs)
    edged = hasattr(symmetry.output_action, "inside")
    loss = None if edged else loss  # the average of predictions is unknown at the edge

    def compared(y: Tree) -> Tensor:
        y = inside_of(symmetry.output_action, y)
        return y if layout is None else layout.pack(y)

    base = compared(outputs)
    moments = OrbitMoments(base, symmetry.group.order, enumerated)
    losses = [] if loss is None else [value(loss, outputs)]
    squares, energies, agreement = [], [], []
    parts = Parts(layout)
    ranked = symmetry.output_action is trivial and _ranked(outputs)
    for g, response, pulled in orbit(function, inputs, symmetry, elements):
        expected = _act(symmetry.output_action, g, outputs, like=response)
        moments.add(compared(pulled))
        if pulled is response and expected is outputs and layout is None:  # the same difference
            squares.append(moments.squares[-1])
            energies.append(moments.energy)
        else:
            right = double(compared(expected))
            defect = double(compared(response)) - right
            squares.append(square(defect))
            energies.append(square(right))
            parts.add(defect, right)
        if loss is not None:
            losses.append(value(loss, pulled))
        if ranked:
            agreement.append((pulled.argmax(1) == outputs.argmax(1)).double().mean())
    answer, note = noise(lambda x: compared(respond(function, x)), inputs, base, generator)
    floor = max(answer, round_trip(symmetry, elements, first(inputs, 2), first(outputs, 2)))
    require_finite(torch.stack(squares), "from f(S_g x)")
    error, stderr, errors = _ratio(squares, energies, enumerated)
    worst = max(range(len(elements)), key=lambda i: errors[i])
    fraction, fraction_floor = moments.fraction(floor)
    verdict, note = _verdict(error, floor, note)
    return EquivarianceResult(
        relative_error=error,
        stderr=stderr,
        worst=errors[worst],
        worst_element=elements[worst],
        orbit_variance=fraction,
        orbit_variance_floor=fraction_floor,
        floor=floor,
        verdict=verdict,
        samples=len(elements),
        enumerated=enumerated,
        percent_of_loss=None
        if loss is None
        else gap(losses, value(loss, _twirl(moments, base, layout))),
        mean_square=float(torch.stack(squares).mean()) / _compared(symmetry, outputs),
        consistency=float(torch.stack(agreement).mean()) if agreement else None,
        parts=parts.errors(),
        note=note,
    )


class Parts:
    """Running sums of the violation of each output tensor."""

    def __init__(self, layout: Layout | None) -> None:
        self.layout = layout
        count = 0 if layout is None else len(layout.names)
        self.sums = torch.zeros(2, count, dtype=torch.float64)

    def add(self, defect: Tensor, right: Tensor) -> None:
        if self.layout is not None:
            for row, packed in enumerate((defect, right)):
                parts = [square(x.contiguous()) for x in self.layout.columns(packed)]
                self.sums[row] += torch.stack(parts).cpu()

    def errors(self) -> dict[str, float]:
        if self.layout is None:
            return {}
        return dict(
            zip(self.layout.names, (self.sums[0] / self.sums[1]).sqrt().tolist(), strict=True)
        )


def _twirl(moments: OrbitMoments, base: Tensor, layout: Layout | None) -> Tree:
    mean = moments.twirl(base)
    return mean if layout is None else layout.unpack(mean)


def _ranked(outputs: Tree) -> bool:
    return isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1


def _compared(symmetry: Equivariance, outputs: Tree) -> float:
    """How many numbers of the output are compared; NaN for several tensors of different units."""
    if not isinstance(outputs, Tensor):
        return math.nan
    return float(inside_of(symmetry.output_action, torch.ones_like(outputs)).double().sum())


def _act(action: Action, g: Element, outputs: Tree, *, like: Tree) -> Tree:
    moved = action(g, outputs)
    for got, wanted in zip(tensors(moved), tensors(like), strict=True):
        if got.shape != wanted.shape:
            raise ValueError(
                f"R_g f(x) at {g!r} has shape {tuple(got.shape)}, but f(S_g x) has "
                f"{tuple(wanted.shape)}; choose an output action that fits the outputs"
            )
    return moved


def _draw(group: Group, samples: int, generator: torch.Generator) -> tuple[list[Element], bool]:
    """Elements other than the identity, and whether these are all."""
    if group.order is not None and group.order - 1 <= samples:
        return [g for g in group.elements() if g != group.identity], True
    drawn: list[Element] = []
    while len(drawn) < samples:
        drawn += [g for g in group.sample(samples, generator) if g != group.identity]
    return drawn[:samples], False


def _ratio(
    squares: list[Tensor], energies: list[Tensor], enumerated: bool
) -> tuple[float, float, list[float]]:
    """sqrt(sum of squares / sum of energies), its standard error, and the same for each element."""
    above, below = torch.stack(squares), torch.stack(energies)
    each = (above / below).sqrt().tolist()  # 0 / 0 is NaN
    count, scale = len(squares), float(below.mean())
    level = float(above.mean() / below.mean())
    error = math.sqrt(level)
    if enumerated or error == 0.0:
        return error, 0.0, each
    if count == 1 or not math.isfinite(error):
        return error, math.nan, each
    residual = float((above - level * below).square().sum()) / (count - 1)
    return error, math.sqrt(residual / count) / (2.0 * error * scale), each


def _verdict(error: float, floor: float, note: str) -> tuple[Verdict, str]:
    if math.isnan(error):
        return "unresolved", note or "all outputs are zero: nothing to compare"
    if error > VIOLATED * floor:
        return "violated", note
    if VIOLATED * floor >= _UNRELATED:
        return "unresolved", note or "the floor hides any violation: use float64, an exact action"
    trusted = error <= HOLDS * floor and note != RANDOM_NOTE
    return "holds" if trusted else "unresolved", note
