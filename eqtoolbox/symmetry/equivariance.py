"""The equivariance error: how far a function is from f(S_g x) = R_g f(x), floor and verdict."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.symmetry.actions.action import Action, has_edge, inside_of, trivial
from eqtoolbox.symmetry.actions.fields import y_up
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.dependence import CONSTANT, constant
from eqtoolbox.symmetry.each import batch_of_one, one_sample, whole
from eqtoolbox.symmetry.floor import noise, round_trip
from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.judged import judged, ratio
from eqtoolbox.symmetry.orbit import (
    Function,
    double,
    marked,
    orbit,
    require_finite,
    require_inputs,
    respond,
    settled,
    square,
)
from eqtoolbox.symmetry.price import Loss, Price
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.shares import Parts
from eqtoolbox.symmetry.structure import Layout, Tree, first, on_tensors, tensors
from eqtoolbox.symmetry.together import Together
from eqtoolbox.symmetry.variance import OrbitMoments

FEWEST = 2  # group elements: the identity and one more


@checked
@torch.no_grad()
def equivariance_error(
    function: Function,
    inputs: Tree,
    symmetry: Claimed,
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
    loss: Loss | None = None,
    outputs: Tree | None = None,
    check: bool = True,
) -> EquivarianceResult:
    """Relative violation of f(S_g x) = R_g f(x), its share of the output variance, and a verdict.

        relative_error = sqrt(E |f(S_g x) - R_g f(x)|^2 / E |R_g f(x)|^2)     over g != e and x
        orbit_variance = E_x Var_g f_g / Var_{x,g} f_g,   f_g(x) = R_g^-1 f(S_g x),  over all g, x
        percent_of_loss = 100 (E_g l(f_g) - l(E_g f_g)) / E_g l(f_g)    over e and the elements used

    Elements: all of G when there are at most `samples` of them, otherwise e and `samples` - 1
    independent uniform ones. Then the standard error is that of the delta method, orbit_variance
    is within / (within + between) of an analysis of variance, its parts unbiased and the second
    >= 0, with a jackknife error; percent_of_loss is low by about 1 / samples of itself. What
    cannot be undone (`Strengths`) is compared at its elements and has neither of the two.

    floor: the largest of (1) the answer of f to x (1 + eps randn), eps being the rounding of x,
    with every operation inside rounded once more by chance, so that what many steps add up is in
    it; (2) the difference of two runs on the same x; (3) the round trips |S^-1 S x - x| / |x| and
    the same of R; (4) eps of the coarsest dtype among the outputs and the operations inside, so
    that autocast is seen (TF32 is not: switch it off). One run of the first few samples sees the
    first two; only a large answer takes two more, to tell them apart.

    verdict: `holds` up to 3 floors, `violated` above 10, else `unresolved` (rerun in float64).
    `trivial` instead of `holds` where f has one and the same output for all inputs (`constant`).
    Never `holds` when the function is random, nor when the floor is so high (0.14) that not even an
    unrelated function, with its error of sqrt(2), would be called violated. Scaling f changes none.

    Dicts, tuples and lists of tensors are batches too: give actions for them with `Each`. Output
    tensors then count alike, whatever their scales, and `parts` has the error of each.

    Cost: `samples` forwards without gradients, f(x) among them unless given, and one on a few
    samples. Where f is small and treats samples one by one, elements share forwards (`Together`).

    Args:
        function: f, (batch, ...) -> (batch, ...), deterministic; it gets copies of the inputs.
        inputs: x, (batch, ...), floating point, or a tree of tensors, some of them so.
        symmetry: the claim.
        samples: group elements at most, the identity among them, >= 2.
        generator: draws elements and perturbations; a new one with seed 0 unless given.
        loss: convex and >= 0, outputs (a tensor or a tree) -> one number, with the targets of
            `inputs` inside. Where it is a sum over the leaves, `loss_parts` has the share of each.
        outputs: f(x) if it is known already, in the same precision.
        check: verify the actions first; switch it off where the same shapes passed before.

    Raises:
        TypeError: inputs or outputs are not floating-point tensors.
        ValueError: empty batch, samples < 2, outputs of another batch size, a wrong action.
        FloatingPointError: outputs are not finite.

    Reference: the laws in Yang & Ziyin 2025, arXiv 2512.21447; percent of loss in arXiv 2512.02303.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import quarter_turn
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> turn = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> equivariance_error(lambda x: x.abs().sum((1, 2, 3))[:, None], x, turn).verdict
        'holds'
        >>> equivariance_error(lambda x: x[:, 0, 0], x, turn).verdict
        'violated'
    """
    if in_parts(inputs, symmetry.rows):
        return _of_parts(function, inputs, symmetry, samples, generator, loss, outputs, check)
    require_inputs(inputs)
    if samples < FEWEST:
        raise ValueError(
            f"samples must be >= 2, the identity and one more, got {samples}; leave the probe out "
            "to measure none"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    function = marked(function, inputs)
    inputs = on_tensors(lambda x: x.detach(), inputs)
    outputs = settled(function, inputs, outputs)
    if check:
        symmetry.check(inputs, outputs)
    elements, enumerated = _draw(symmetry.group, samples, generator)
    layout = None if isinstance(outputs, Tensor) else Layout.of(outputs)
    averaged = symmetry.group.invertible and not has_edge(symmetry.output_action)
    price = None if loss is None or not averaged else Price(loss, outputs, layout)

    def compared(y: Tree) -> Tensor:
        y = inside_of(symmetry.output_action, y)
        return y if layout is None else layout.pack(y)

    base = compared(outputs)
    moments = OrbitMoments(base, symmetry.group.order, enumerated)
    squares, energies, agreement, parts = [], [], [], Parts(layout)
    ranks = symmetry.output_action is trivial and _ranked(outputs) and outputs.argmax(1)
    of_inputs = lambda x: compared(respond(function, x))
    seen = noise(of_inputs, inputs, base, generator)
    together = Together(function, inputs, outputs, seen)
    for g, response, pulled in orbit(function, inputs, symmetry, elements, together):
        expected = _act(symmetry.output_action, g, outputs, like=response)
        if pulled is not None:
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
        if price is not None:
            price.add(pulled)
        if ranks is not False:
            agreement.append((response.argmax(1) == ranks).double().mean())
    floor = seen.answer
    if symmetry.group.invertible:
        floor = max(floor, round_trip(symmetry, elements, first(inputs, 2), first(outputs, 2)))
    require_finite(torch.stack(squares), "from f(S_g x)")
    error, stderr, errors = ratio(squares, energies, enumerated)
    worst = max(range(len(elements)), key=lambda i: errors[i])
    share = moments.fraction(floor)
    verdict, note = judged(error, floor, seen.note)
    if verdict == "holds" and constant(of_inputs, inputs, base, seen.answer, generator):
        verdict, note = "trivial", CONSTANT
    if verdict == "violated" and samples > FEWEST:  # a first look looks no further
        note = "; ".join(filter(None, (note, _other_axis(function, inputs, symmetry, outputs))))
    twirl = None if price is None else _twirl(moments, outputs, layout)
    return EquivarianceResult(
        relative_error=error,
        stderr=stderr,
        worst=errors[worst],
        worst_element=elements[worst],
        orbit_variance=share.value,
        orbit_variance_floor=share.floor,
        orbit_variance_stderr=share.stderr,
        floor=floor,
        verdict=verdict,
        samples=len(elements),
        enumerated=enumerated,
        percent_of_loss=None if price is None else price.percent(twirl),
        mean_loss=math.nan if price is None else price.mean,
        loss_parts={} if price is None else price.parts(twirl),
        mean_square=float(torch.stack(squares).mean()) / _compared(symmetry, outputs),
        consistency=float(torch.stack(agreement).mean()) if agreement else None,
        parts=parts.errors(),
        sums=() if layout else (torch.stack(squares).tolist(), torch.stack(energies).tolist()),
        note=note,
    )


def _other_axis(function: Function, inputs: Tree, symmetry: Equivariance, outputs: Tree) -> str:
    """A hint where a violated claim of fields holds with their y axis the other way."""
    given, made = symmetry.input_action, symmetry.output_action
    field = y_up(given) or y_up(made)
    if field is None:
        return ""
    turned = replace(symmetry, input_action=y_up(given) or given, output_action=y_up(made) or made)
    found: EquivarianceResult = equivariance_error(
        function, inputs, turned, samples=FEWEST, outputs=outputs
    )
    if found.verdict != "holds":
        return ""
    way = "up" if field.up else "down"
    return f"it holds with y pointing {way}: give Field({field.rank}, up={field.up})"


def _of_parts(
    function: Function,
    inputs: Tree,
    symmetry: Equivariance,
    samples: int,
    generator: torch.Generator | None,
    loss: Loss | None,
    outputs: Tree | None,
    check: bool,
) -> EquivarianceResult:
    """The same of rows that are no samples: the batch is one."""
    found: EquivarianceResult = equivariance_error(
        one_sample(function),
        batch_of_one(inputs),
        replace(symmetry, rows="samples"),
        samples=samples,
        generator=generator,
        loss=None if loss is None else whole(loss),
        outputs=None if outputs is None else batch_of_one(outputs),
        check=check,
    )
    return replace(found, consistency=None)


def _twirl(moments: OrbitMoments, outputs: Tree, layout: Layout | None) -> Tree:
    mean = moments.twirl()
    return layout.unpack(mean) if layout else mean.reshape(outputs.shape).to(outputs)


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
    if group.order is not None and group.order <= samples:
        return [g for g in group.elements() if g != group.identity], True
    drawn: list[Element] = []
    while len(drawn) < samples - 1:
        drawn += [g for g in group.sample(samples, generator) if g != group.identity]
    return drawn[: samples - 1], False
