"""Search: parameter symmetries proposed from what a loss runs, confirmed by numbers."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.bias_shift import propose_bias_shifts
from eqtoolbox.symmetry.families.discrete import (
    propose_heads,
    propose_permutations,
    propose_sign_flips,
)
from eqtoolbox.symmetry.families.general_linear import MatrixSymmetry
from eqtoolbox.symmetry.families.head import propose_head
from eqtoolbox.symmetry.families.translation import propose_translations
from eqtoolbox.symmetry.parameter import (
    ContinuousSymmetry,
    DiscreteSymmetry,
    ParameterSymmetry,
)
from eqtoolbox.symmetry.search.members import members, proposals
from eqtoolbox.symmetry.search.trace import Trace, trace
from eqtoolbox.symmetry.search.verification import (
    Loss,
    equivariance_residuals,
    judged,
    value_and_gradient,
    verified,
    verified_discrete,
)

log = logging.getLogger(__name__)
Run = Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A loss at one point with all that proposals are checked against."""

    loss: Loss
    outputs: Loss | None  # the model's output, where it is a single tensor
    params: dict[str, Tensor]
    value: Tensor
    gradient: dict[str, Tensor] = field(repr=False)
    trace: Trace = field(repr=False)
    generator: torch.Generator = field(repr=False)

    def check(self, symmetry: ContinuousSymmetry, draws: int = 2) -> ContinuousSymmetry:
        """The symmetry with its status and residual."""
        return verified(
            symmetry, self.loss, self.params, self.generator, draws, self.gradient, self.value
        )


def _discrete(problem: Problem, larger: list[MatrixSymmetry]) -> Iterator[DiscreteSymmetry]:
    """Permutations and sign flips that are in none of the `larger` groups."""
    labels = propose_permutations(members(problem.trace, "label")[0])
    flips = propose_sign_flips(members(problem.trace, "sign")[0])
    covered = [set(s.names) for s in larger if s.family != "rope"]
    turned = [set(s.names) for s in larger if s.family == "rope"]  # half a turn flips the sign
    for proposal in (*labels, *flips, *propose_heads(larger)):
        own = set(proposal.names)
        heads = proposal.name.endswith("heads")
        if not heads and (own in covered or (proposal.family == "sign_flip" and own in turned)):
            continue
        checked = verified_discrete(
            proposal, problem.loss, problem.params, problem.gradient, problem.value
        )
        if checked.status != "broken":
            yield checked


def find_symmetries(
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    run: Run | None = None,
) -> list[ParameterSymmetry]:
    """Parameter symmetries of `loss` at `params`, each with its verified status and residual.

    One evaluation is traced, the analyses propose from the trace, and each proposal is checked at
    a finite transformation and to first order (`search.verification`). Give float64 parameters and
    a loss that computes in float64 for the sharpest check.

    Args:
        loss: params -> scalar.
        params: what may move; anything else is held fixed.
        generator: for the random elements; seeded with 0 unless given.
        run: params -> (output or None, loss), where the model's output is known: then also
            equivariances are looked for.

    Returns:
        Proposals with their status: look at it before use. A group that holds is not listed again
        within a larger one.
    """
    problem = _problem(loss, dict(params), generator, run)
    found: list[ParameterSymmetry] = list(_scaling(problem))
    matrices = [s for s in found if isinstance(s, MatrixSymmetry) and s.status != "broken"]
    for proposal in (
        *propose_translations(problem.trace, problem.gradient),
        *propose_bias_shifts(problem.trace, problem.params, problem.gradient),
    ):
        checked = problem.check(proposal)
        if checked.status != "broken":
            found.append(checked)
    if problem.outputs is not None:
        for proposal in propose_head(problem.trace):
            worst = max(
                equivariance_residuals(proposal, problem.outputs, problem.params, problem.generator)
            )
            checked = judged(proposal, worst, problem.value.dtype == torch.float64)
            if checked.status != "broken":
                found.append(checked)
    found += _discrete(problem, matrices)
    return found


def _problem(
    loss: Loss, params: dict[str, Tensor], generator: torch.Generator | None, run: Run | None
) -> Problem:
    generator = generator or torch.Generator().manual_seed(0)
    params = _in_general_position(params, generator)
    traced = trace(run or (lambda p: (None, loss(p))), params)
    value, gradient = value_and_gradient(loss, params)
    outputs: Loss | None = None
    if run is not None and traced.output is not None:
        outputs = lambda p: _output(run, p)
    for note in traced.notes:
        log.info("symmetries: %s", note)
    return Problem(
        loss=loss,
        outputs=outputs,
        params=params,
        value=value,
        gradient=gradient,
        trace=traced,
        generator=generator,
    )


def _output(run: Run, params: dict[str, Tensor]) -> Tensor:
    output = run(params)[0]
    assert output is not None
    return output


def _in_general_position(
    params: dict[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters moved a little: a symmetry holds everywhere, an accident of initialisation
    (all gains one, all biases zero) only there."""
    moved = {}
    for name, p in params.items():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        rms = p.detach().square().mean().sqrt() if p.numel() else torch.zeros(())
        moved[name] = p.detach() + (0.1 * rms + 0.01) * noise
    return moved


def _scaling(problem: Problem) -> Iterator[ContinuousSymmetry]:
    found, state = members(problem.trace)
    if state.unknown:
        log.warning(
            "symmetries: no rule for %s; what these operations read was taken as fixed, so that "
            "symmetries through them are missed",
            ", ".join(sorted(state.unknown)),
        )
    for _, trials in proposals(found):
        for trial in trials:
            checked = problem.check(trial)
            if checked.status != "broken" or trial is trials[-1]:
                yield checked
                break
