"""Enforced: a model inside another that obeys a claim, what that costs and how it was checked."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from eqtoolbox.enforce.calling import Calling, Model, arguments_of, of_tensors
from eqtoolbox.expect import notebook
from eqtoolbox.replay.gradients import in_forward_mode
from eqtoolbox.replay.isolation import evaluation, isolated
from eqtoolbox.symmetry.actions.action import check_action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.orbit import told
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree, first, on_tensors, tensors

_FEW = 8  # samples and elements of a check
_FORWARDS = 512  # of the model in a check, about


@dataclass(frozen=True, kw_only=True)
class Enforcement:
    """What was made of a model: its equivariance error before and after, and what a call costs."""

    method: str  # such as "averaged"
    claim: str  # its name
    forwards: int  # of the model, on as many samples as the batch has, at each call
    scores: int  # of a score, likewise; 0 without one
    before: EquivarianceResult  # of the model itself, in evaluation mode
    result: EquivarianceResult  # of what was made of it
    margin: float = math.nan  # smallest of the sample, best score less the second; NaN without

    _repr_html_ = notebook.text

    def __str__(self) -> str:
        scored = f" and {self.scores} scores" if self.scores else ""
        plural = "s" if self.forwards > 1 else ""
        lines = [f"{self.method} over {self.claim}: {self.forwards} forward{plural}{scored} a call"]
        lines += [f"{'':14}{'relative error':>16}{'floor':>10}  verdict"]
        for name, found in (("the model", self.before), (self.method, self.result)):
            error = f"{found.relative_error:.2g}"
            error += f" ± {found.stderr:.1g}" if found.stderr > 0.0 else ""
            lines += [f"{name:14}{error:>16}{found.floor:>10.1g}  {found.verdict}"]
        if self.scores:
            lines += [f"smallest margin between the best score and the second: {self.margin:.2g}"]
        return "\n".join(lines + ([self.result.note] if self.result.note else []))


class Enforced(nn.Module):
    """A model made to obey a claim; called as the model is called.

    The model is `.model` (the live one: its parameters are trained), so that keys of the
    `state_dict` are the model's behind "model.". `.report` says what was found when it was
    checked; it is None until then.
    """

    method = "enforced"
    exact = True  # a violation is refused

    def __init__(self, model: Model, claim: Equivariance) -> None:
        super().__init__()
        lazy = nn.parameter.UninitializedParameter
        if isinstance(model, nn.Module) and any(isinstance(p, lazy) for p in model.parameters()):
            raise ValueError(
                "the model has lazy parameters, which have no shape yet; call it on a batch first"
            )
        self.model, self.claim = model, claim
        self.report: Enforcement | None = None

    @property
    @abstractmethod
    def cost(self) -> tuple[int, int]:
        """Forwards of the model and of a score at each call, of as many samples as the batch."""

    @abstractmethod
    def answer(self, calling: Calling) -> Tree:
        """The outputs of one call, opened."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, in the same containers."""
        calling = Calling(self.model, self.claim, args, kwargs)
        if self.report is None and plain(calling.tree):
            self.judge(calling)
        return calling.closed(self.answer(calling))

    def on_sample(self, sample: Any) -> None:
        """Check it on a sample, unless that is None."""
        if sample is not None:
            args, kwargs = arguments_of(self.model, sample)
            self.judge(Calling(self.model, self.claim, args, kwargs))

    def judge(self, calling: Calling) -> None:
        """Check the actions, measure before and after in evaluation mode, leave no trace.

        Raises:
            ValueError: an action is none on this sample, or what was made violates the claim.
        """
        claim = replace(self.claim, rows="samples")
        tree = calling.tree if calling.parts else first(calling.tree, _FEW)
        samples = max(2, min(_FEW, _FORWARDS // self.cost[0]))
        outside = [] if isinstance(self.model, nn.Module) else [self.model]

        def measured(function: Any) -> EquivarianceResult:
            found: EquivarianceResult = equivariance_error(
                lambda x: picked(function(x)), tree, compared, samples=samples, check=False
            )
            return found

        with evaluation(self), isolated(self, expected=outside):
            _require_action(claim, "input_action", tree)
            with torch.no_grad():
                outputs = told(calling.respond, tree)
            _require_action(claim, "output_action", outputs)
            compared, picked = of_tensors(claim, outputs)
            before = measured(calling.respond)
            result = measured(lambda x: self.answer(calling.on(x)))
            margin = self.margin_on(calling.on(tree))
        if self.exact and result.verdict == "violated":
            raise ValueError(
                f"{self.method} over {claim.name} has relative error {result.relative_error:.2g} "
                f"above the floor {result.floor:.1g}: {self.why(margin)}"
            )
        forwards, scores = self.cost
        self.report = Enforcement(
            method=self.method, claim=claim.name, forwards=forwards, scores=scores,
            before=before, result=result, margin=margin,
        )  # fmt: skip

    def why(self, margin: float) -> str:
        """What a violation comes from, and what to do."""
        return (
            "the model answers by more than its inputs, such as a count of its calls or a random "
            "number that evaluation mode does not stop; mend that first"
        )

    def margin_on(self, calling: Calling) -> float:
        """The smallest margin of scores on a batch; NaN without scores."""
        return math.nan

    def extra_repr(self) -> str:
        """The claim, the cost and the finding."""
        forwards, scores = self.cost
        scored = f" and {scores} scores" if scores else ""
        said = f"{self.claim.name}, {forwards} forward{'s' if forwards > 1 else ''}{scored} a call"
        if self.report is None:
            return f"{said}, not checked yet"
        found = self.report.result
        return f"{said}, relative error {found.relative_error:.1g} ({found.verdict})"


def _require_action(claim: Equivariance, side: str, x: Tree) -> None:
    """As `Equivariance.check`, one side: what is wrong with the inputs comes before the model."""
    few = on_tensors(lambda t: t.detach(), first(x, 2))
    check_action(claim.group, getattr(claim, side), few, name=side, tolerance=claim.tolerance)


def plain(tree: Tree) -> bool:
    """Whether a call is one with numbers, and none that is traced or differentiated."""
    tracing = torch.jit._trace.is_tracing()  # type: ignore[no-untyped-call]
    traced = tracing or torch.compiler.is_compiling() or in_forward_mode()
    return not traced and not any(x.is_meta for x in tensors(tree))
