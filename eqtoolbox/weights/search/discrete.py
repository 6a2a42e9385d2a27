"""Discrete search: permutations and sign flips, those within larger groups left out."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry
from eqtoolbox.weights.search.experts import propose_experts
from eqtoolbox.weights.search.members import each_member
from eqtoolbox.weights.search.moves import Move, move
from eqtoolbox.weights.search.output_law import OutputLaw
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.units import (
    across_axes,
    propose_heads,
    propose_permutations,
    propose_sign_flips,
)
from eqtoolbox.weights.search.verification import gradients, judged
from eqtoolbox.weights.tracing.trace import Trace


class DiscreteProposals:
    """Permutations and sign flips that a trace shows."""

    def __init__(
        self,
        trace: Trace,
        chains: Sequence[Sequence[ContinuousSymmetry]],
        listed: Sequence[DiscreteSymmetry] = (),
    ) -> None:
        first = [c[0] for c in chains if c and isinstance(c[0], MatrixSymmetry)]
        mixed = [set(m.names) for m in first if "permutation" in m.form.contains]
        labelled, state = each_member(trace, "label")
        units = list(propose_permutations(labelled))
        missed: dict[str, None] = {}
        flips: list[DiscreteSymmetry] = []
        for member in each_member(trace, "sign")[0]:
            missed |= across_axes([member])
            flips += propose_sign_flips([member])
        if missed:
            state.pinned.note(
                "units across the axes of a parameter in two ways: their signs are missed", missed
            )
        self.pinned = state.pinned  # what permutations may be lost at
        large = [*propose_heads(first), *propose_experts(trace)]
        known = {(frozenset(s.names), s.dimension) for s in large}
        every: list[DiscreteSymmetry] = [
            *listed,
            *large,
            *(s for s in units if (frozenset(s.names), s.dimension) not in known),
            *flips,
        ]
        inside = [set(s.names) in mixed and not getattr(s, "whole_heads", False) for s in every]
        self.proposed = [s for s, within in zip(every, inside, strict=True) if not within]
        # those within a larger continuous group, if that holds
        self.deferred = [s for s, within in zip(every, inside, strict=True) if within]

    @property
    def every(self) -> list[DiscreteSymmetry]:
        """All of them."""
        return [*self.proposed, *self.deferred]


class DiscreteSearch:
    """Permutations and sign flips, tried before the gradient comes where their law is looked at.

    Elsewhere `waiting` says what to try together with the others, in as few evaluations.
    """

    def __init__(self, problem: Problem, proposals: DiscreteProposals) -> None:
        self.pinned = proposals.pinned
        self.proposed, self.deferred = proposals.proposed, proposals.deferred
        self.waiting = [elements_of(s, problem.generator) for s in self.proposed]
        self.changes: list[float] = []
        passed: list[Move] = []
        whole = problem.point.whole  # else a piece may lack what is exchanged
        if not problem.exact:
            elements = [moves[0] for moves in self.waiting]
            self.tried(problem.changes(self.waiting))
            passed = [
                element
                for element, change in zip(elements, self.changes, strict=True)
                if change <= problem.small and (element.separable or whole)
            ]
        self.covariance = OutputLaw(passed)

    def tried(self, changes: list[float]) -> None:
        """Nothing is waiting any more: the loss changed so much under each."""
        self.waiting, self.changes = [], changes

    def holding(
        self, problem: Problem, continuous: list[ContinuousSymmetry]
    ) -> Iterator[DiscreteSymmetry]:
        """Those that hold and are in none of the larger groups found."""
        larger = [s for s in continuous if s.status != "broken"]
        covered = [set(s.names) for s in larger if "permutation" in s.form.contains]
        turned = [set(s.names) for s in larger if "sign_flip" in s.form.contains]
        if self.covariance.elements:
            elements = self.covariance.elements
            gradients(problem.whole, problem.point, self.covariance.compare, elements)
        for proposal, order_0 in zip(self.proposed, self.changes, strict=True):
            own = set(proposal.names)
            if order_0 > problem.small or (proposal.family == "sign_flip" and own in turned):
                continue
            worst = max(order_0, self.covariance.residual(proposal.names))
            checked = judged(proposal, worst, problem.value.dtype)
            if checked.status != "broken":
                yield checked
        # units within a larger group that did not hold: order 0 alone
        left = [s for s in self.deferred if set(s.names) not in covered]
        changes = problem.changes([elements_of(s, problem.generator) for s in left])
        for proposal, order_0 in zip(left, changes, strict=True):
            checked = judged(proposal, order_0, problem.value.dtype)
            if checked.status != "broken":
                yield checked


def elements_of(symmetry: DiscreteSymmetry, generator: torch.Generator) -> list[Move]:
    """A random element, and to follow it the first generating element.

    A subgroup with what both lead to has that generating element: no parity hides.
    """
    first = partial(symmetry.element, which=0)
    return [move(symmetry, symmetry.draw(generator)), move(symmetry, first)]
