"""The equivariance error: how far a function is from f(S_g x) = R_g f(x), floor and verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.record import HOLDS, VIOLATED, Verdict
from eqtoolbox.symmetry.actions import Action
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
    note: str = ""  # what to mend before the numbers can be trusted


@torch.no_grad()
def equivariance_error(
    function: Function,
    inputs: Tensor,
    symmetry: Equivariance,
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
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

    Cost: at most `samples` + 3 forwards, without gradients; two of them on a few samples.

    Args:
        function: f, (batch, ...) -> (batch, ...), deterministic; it gets copies of the inputs.
        inputs: x, (batch, ...), floating point.
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
    inputs = inputs.detach()
    outputs = respond(function, inputs).clone()  # f may reuse its buffer
    require_finite(outputs, "from f(x)")
    if check:
        symmetry.check(inputs, outputs)
    elements, enumerated = _draw(symmetry.group, samples, generator)
    moments = OrbitMoments(outputs, symmetry.group.order, enumerated)
    losses = [] if loss is None else [value(loss, outputs)]
    squares, energies = [], []
    for g, response, pulled in orbit(function, inputs, symmetry, elements):
        expected = _act(symmetry.output_action, g, outputs, like=response)
        moments.add(pulled)
        if pulled is response and expected is outputs:  # trivial: the same difference
            squares.append(moments.squares[-1])
            energies.append(moments.energy)
        else:
            right = double(expected)
            squares.append(square(double(response) - right))
            energies.append(square(right))
        if loss is not None:
            losses.append(value(loss, pulled))
    answer, note = noise(function, inputs, outputs, generator)
    floor = max(answer, round_trip(symmetry, elements, inputs[:2], outputs[:2]))
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
        percent_of_loss=None if loss is None else gap(losses, value(loss, moments.twirl(outputs))),
        note=note,
    )


def _act(action: Action, g: Element, outputs: Tensor, *, like: Tensor) -> Tensor:
    moved = action(g, outputs)
    if moved.shape != like.shape:
        raise ValueError(
            f"R_g f(x) at {g!r} has shape {tuple(moved.shape)}, but f(S_g x) has "
            f"{tuple(like.shape)}; choose an output action that fits the outputs"
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
