"""The engine: how Hessian products of the model at hand are computed, chosen by a self-test."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from eqtoolbox.linalg import finite_difference, hessian
from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.vectors import add, dot, norm, random_like, scale
from eqtoolbox.objective import Objective, Parameters
from eqtoolbox.probe import Measurement
from eqtoolbox.snapshot import NotApplicable, Snapshot

EngineMode = Literal["exact", "differenced"]
DifferentiatedOperator = Hessian | FiniteDifference  # both know the gradient as well

ASYMMETRY = 2e-3  # float32 networks reach 7e-5, wrong double backwards start at 8e-3
WRONG = 0.03  # exact against differenced product; differences of smooth losses err by 1e-3
RANDOM = 1e-4  # change of the loss when evaluated again; rounding gives 1e-7


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What was tried once before Hessian products are trusted; NaN for what could not be."""

    mode: EngineMode
    reason: str  # why not the faster mode, or what the test could not see
    repeat: float  # relative change of the loss when evaluated again
    asymmetry: float  # |<u, Hv> - <v, Hu>| / |Hv| with u along Hv
    difference: float  # |Hu - differenced Hu| / |Hu|


@dataclass
class Engine:
    """Hessian operators for snapshots of one model, by the fastest mode that passed the self-test.

    exact: reverse over reverse on a retained graph. differenced: central differences of
    gradients, where an operation has no second derivative or a wrong one; refused at kinks.
    """

    test: SelfTest | None = None
    _shapes: dict[str, torch.Size] = field(default_factory=dict)
    _told: bool = False

    def operator(self, snapshot: Snapshot) -> DifferentiatedOperator:
        """The Hessian of the snapshot's loss at its parameters.

        Raises:
            NotApplicable: no mode gives right products; the message says what was found.
        """
        params, objective = snapshot.before, snapshot.objective
        if any(p.is_complex() for p in params.values()):
            raise NotApplicable("complex parameters: their Hessian is not supported")
        shapes = {n: p.shape for n, p in params.items()}
        if self.test is None or shapes != self._shapes:
            self.test, self._shapes, self._told = self_test(objective, params), shapes, False
        return _operator(objective, params, self.test.mode)

    def state(self, snapshot: Snapshot) -> dict[str, Any]:
        """The self-test's result as plain values, tested now if it was not yet."""
        self.operator(snapshot)
        assert self.test is not None
        return asdict(self.test)

    def resume(self, snapshot: Snapshot, state: dict[str, Any]) -> None:
        """Go on with the mode that an earlier run chose."""
        if self.test is None:
            self.test, self._told = SelfTest(**state), True
            self._shapes = {n: p.shape for n, p in snapshot.before.items()}

    def report(self) -> Iterator[Measurement]:
        """Results of the self-test, once after each time it ran."""
        if self.test is None or self._told:
            return
        self._told = True
        note = f"{self.test.mode}: {self.test.reason}"
        for quantity in ("repeat", "asymmetry", "difference"):
            value = getattr(self.test, quantity)
            if math.isnan(value):
                yield Measurement("self_test", value, quantity, status="not_applicable", note=note)
            else:
                yield Measurement("self_test", value, quantity, note=note)


def self_test(objective: Objective, params: Parameters) -> SelfTest:
    """Choose a mode: is the loss repeatable, are products symmetric and equal to differences?

    Costs about 9 gradients.

    Raises:
        NotApplicable: the loss is random, or no mode gives right products.
        FloatingPointError: the loss or its gradient is not finite.
    """
    first, again = (float(objective(params).detach()) for _ in range(2))
    repeat = abs(first - again) / max(abs(first), 1e-30)
    if repeat > RANDOM:
        raise NotApplicable(
            f"the loss is random: evaluated twice on the same batch it changed by {repeat:.1%}; "
            "draw its random numbers from the global torch, numpy or python streams, which are "
            "frozen here"
        )
    direction = random_like(params, torch.Generator().manual_seed(0))
    try:
        with hessian(objective, params) as exact:
            product = exact(direction)
            along = scale(1 / max(norm(product), 1e-300), product)
            second = exact(along)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, ValueError) and "must depend on the parameters" in str(error):
            raise
        why = f"no exact products ({_first_line(error)})"
        return replace(_differenced(objective, params, direction, why), repeat=repeat)
    asymmetry = abs(norm(product) - dot(direction, second)) / max(norm(product), 1e-300)
    try:
        differenced = finite_difference(objective, params)(along)
    except ValueError:
        if asymmetry > ASYMMETRY:
            raise NotApplicable(
                f"Hessian products are not symmetric ({asymmetry:.1%}) and the loss has kinks, "
                "so that differences cannot replace them: some operation has a wrong second "
                "derivative"
            ) from None
        reason = "symmetric and repeatable; kinks: not comparable with differences"
        return SelfTest(
            mode="exact", reason=reason, repeat=repeat, asymmetry=asymmetry, difference=math.nan
        )
    difference = norm(add(second, differenced, -1.0)) / max(norm(second), 1e-300)
    test = SelfTest(
        mode="exact",
        reason="symmetric, repeatable, equal to differences",
        repeat=repeat,
        asymmetry=asymmetry,
        difference=difference,
    )
    if asymmetry > ASYMMETRY or difference > WRONG:
        why = (
            f"exact products are wrong: {difference:.1%} off differences, "
            f"{asymmetry:.1%} unsymmetric"
        )
        return replace(test, mode="differenced", reason=why)
    return test


def _differenced(
    objective: Objective, params: Parameters, direction: Parameters, why: str
) -> SelfTest:
    """The self-test of differences alone: are they smooth and symmetric?"""
    try:
        operator = finite_difference(objective, params)
        product = operator(direction)
        along = scale(1 / max(norm(product), 1e-300), product)
        back = dot(direction, operator(along))
    except ValueError as error:
        raise NotApplicable(f"{why}, and no differences: {_first_line(error)}") from error
    asymmetry = abs(norm(product) - back) / max(norm(product), 1e-300)
    return SelfTest(
        mode="differenced", reason=why, repeat=math.nan, asymmetry=asymmetry, difference=math.nan
    )


def _operator(objective: Objective, params: Parameters, mode: EngineMode) -> DifferentiatedOperator:
    return hessian(objective, params) if mode == "exact" else finite_difference(objective, params)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
