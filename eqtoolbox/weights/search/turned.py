"""Turned: parameters and inputs moved together, the loss unchanged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.first_layers import propose_input_rotation
from eqtoolbox.weights.search.moves import Move, move, moved
from eqtoolbox.weights.search.problem import MovedInputs, Problem
from eqtoolbox.weights.search.verification import Loss, change, changes_along, draw, judged


@dataclass(frozen=True, eq=False)
class Turned:
    """A symmetry of parameters and inputs, with the element that both are moved by."""

    symmetry: ContinuousSymmetry
    element: Tensor  # c, (dimension,)

    def move(self, share: float) -> Move:
        """Of the parameters, by a share of c."""
        return move(self.symmetry, self.symmetry.flow(share * self.element))

    def loss(self, moved_inputs: MovedInputs, share: float) -> Loss:
        """Of the inputs moved by a share of c."""
        turned = partial(self.symmetry.transform_inputs, coefficients=share * self.element)
        return partial(_loss_of, moved_inputs, turned)


class TurnedSearch:
    """What the trace shows of it, for a large model in float64 tried with all else that is moved.

    order 0: |L(T_c theta, S_c x) - L| / |L|; order 1: |g . K + <dL/dx, X>| over the larger term,
    X the inputs' tangent; the second term is the derivative along x + s X. Of a large model in
    float64 order 0 at -c stands for it.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._waiting = problem.exact
        self._found: float | None = None

    @cached_property
    def _every(self) -> list[Turned]:
        problem = self.problem
        asked = problem.moved_inputs is not None
        proposed = propose_input_rotation(problem.trace) if asked else ()
        return [Turned(s, draw(s, problem.value, problem.random)) for s in proposed]

    def along(self, moves: Sequence[Sequence[Move]]) -> float | None:
        """Change of the loss at c and at -c where these are moved as well; None unless small."""
        problem = self.problem
        inputs = problem.moved_inputs
        if not self._waiting or len(self._every) != 1 or inputs is None:
            return None
        self._waiting = False
        (own,) = self._every
        start, last = own.loss(inputs, 1.0), own.loss(inputs, -1.0)
        every = [*moves, [own.move(1.0), own.move(-2.0)]]
        small, value = problem.small, problem.total
        try:
            found = changes_along(start, problem.point, every, value, small, last)
        except RuntimeError:  # not the model's first argument
            return None
        self._found = max(found) if max(found) <= small else None
        return self._found

    def holding(self) -> Iterator[ContinuousSymmetry]:
        """Those that hold: of what was not seen to do so with all else, each by itself."""
        for own in self._every:
            try:
                worst = _alone(self.problem, own) if self._found is None else self._found
            except RuntimeError:  # not the model's first argument
                continue
            checked = judged(own.symmetry, worst, self.problem.value.dtype)
            if checked.status != "broken":
                yield checked


def _alone(problem: Problem, own: Turned) -> float:
    """Its residual, of parameters and inputs that nothing else moves."""
    moved_inputs = problem.moved_inputs
    assert moved_inputs is not None, "nothing is proposed without"
    worst = max(
        change(own.loss(moved_inputs, k), problem.point, [own.move(k)], problem.total)
        for k in (1.0, -1.0)
    )
    return worst if problem.exact else max(worst, _slope(problem, moved_inputs, own))


def _slope(problem: Problem, moved_inputs: MovedInputs, own: Turned) -> float:
    """The sum of both derivatives along c, over the larger."""
    symmetry, c = own.symmetry, own.element
    s = torch.zeros((), dtype=problem.value.dtype, requires_grad=True)
    leaves = moved(problem.point, ())
    leaves |= {n: leaves[n].detach().requires_grad_() for n in symmetry.names}
    with problem.point.scope():
        loss = moved_inputs(leaves, partial(_along, symmetry, c, s))
        wanted = [s, *(leaves[n] for n in symmetry.names)]
        slope, *gradient = torch.autograd.grad(loss, wanted, materialize_grads=True)
    tangent = symmetry.tangent(problem.point, c)
    pairs = zip(symmetry.names, gradient, strict=True)
    along = sum(float((g * tangent[n]).sum()) for n, g in pairs)
    return abs(along + float(slope)) / max(abs(along), abs(float(slope)), 1e-300)


def _loss_of(
    moved_inputs: MovedInputs, turned: Callable[[Tensor], Tensor], params: dict[str, Tensor]
) -> Tensor:
    return moved_inputs(params, turned)


def _along(symmetry: ContinuousSymmetry, c: Tensor, s: Tensor, inputs: Tensor) -> Tensor:
    return inputs + s * symmetry.tangent_inputs(inputs, c)
