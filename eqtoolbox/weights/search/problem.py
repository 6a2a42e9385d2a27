"""A problem: a loss at one point, traced, with all that proposals are checked against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import at_leaves
from eqtoolbox.weights.epsilon import Noted
from eqtoolbox.weights.search.moves import Move, moved, moved_alone
from eqtoolbox.weights.search.point import Point, beside
from eqtoolbox.weights.search.steady import Steady
from eqtoolbox.weights.search.stream import Awaited, Receive
from eqtoolbox.weights.search.verification import (
    Loss,
    changes_along,
    evaluated,
    gradients,
    joint_changes,
    limit,
)
from eqtoolbox.weights.tracing.trace import Trace, Tracer, recorded, trace, untraced

Run = Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]]
MovedInputs = Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], Tensor]

_DEAR = 2**18  # numbers that an evaluation makes, which take longer than calling its operations


class NotFinite(ValueError, FloatingPointError):
    """The loss is NaN or infinite: a wrong call for who asks directly, a status for a probe."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A loss at one point with all that proposals are checked against."""

    whole: Loss  # of all samples, whose gradient is looked at
    loss: Loss  # of as many as it takes to see what fails, and what epsilons explain
    outputs: Loss | None  # the model's output of these, where it is a single tensor
    every_output: Loss | None  # and of all
    moved_inputs: MovedInputs | None  # the loss of all where the model's inputs are moved
    point: Point
    total: Tensor  # value of the loss of all samples
    value: Tensor  # and of as many
    made: Tensor | None = field(repr=False)  # the output of as many
    made_of_all: Tensor | None = field(repr=False)
    noted: list[Tensor] | None = field(default=None, repr=False)  # what epsilons are added to
    trace: Trace = field(repr=False)
    generator: torch.Generator = field(repr=False)  # of orders and signs, on the CPU
    random: torch.Generator = field(repr=False)  # of elements, where the loss is
    dear: bool  # a large model, or an evaluation that takes longer than calling its operations
    pending: list[Awaited] = field(default_factory=list, repr=False)  # what was traced, at most one

    @property
    def small(self) -> float:
        return limit(self.value.dtype)

    @property
    def exact(self) -> bool:
        """Whether order 0 says it all: in float64, where to look twice takes long."""
        return self.value.dtype == torch.float64 and self.dear

    @cached_property
    def amounts(self) -> list[Tensor]:
        """What each epsilon is added to at the point, in the order of calls.

        Raises:
            RuntimeError: formulas in place of kernels do not run where these do.
        """
        return Steady.at(self.loss, self.point) if self.noted is None else self.noted

    @property
    def varied(self) -> bool:
        """Whether each normalisation was seen to divide by something; False where none was."""
        return self.noted is not None and all(bool(a.any()) for a in self.noted)

    def gradient(self, receive: Receive) -> None:
        """Parameters and the gradient of all samples: that of what was traced, the first time."""
        if not self.pending:
            noted = Noted()

            def whole(params: dict[str, Tensor]) -> Tensor:
                with noted:
                    return self.whole(params)

            noting = self.exact and self.noted is None and self.loss is self.whole
            gradients(whole if noting else self.whole, self.point, receive)
            if noting and noted.known:
                self.__dict__["amounts"] = noted.amounts  # without an evaluation for them alone
            return
        with self.point.scope():
            own = self.pending.pop()
            own.backward(receive, release=self.point.release, seen=self.point.seen)

    def along(self, moves: Sequence[Sequence[Move]], small: float | None = None) -> list[float]:
        """Relative changes of the loss where all are moved; see `changes_along`.

        Few samples, where these are looked at, say what fails, and all of them what holds.
        """
        small = self.small if small is None else small
        if self.loss is not self.whole:
            found = changes_along(self.loss, self.point, moves, self.value, small)
            if max(found, default=0.0) > small:
                return found
        return changes_along(self.whole, self.point, moves, self.total, small)

    def changes(
        self,
        moves: Sequence[Sequence[Move]],
        failing: bool = False,
        small: float | None = None,
    ) -> list[float]:
        """Relative change of the loss under each proposal's moves; see `along`, `joint_changes`."""
        small = self.small if small is None else small
        if self.loss is self.whole or len(moves) == 1:  # nobody is to be told apart
            return joint_changes(self.whole, self.point, moves, self.total, small, failing)
        found = joint_changes(self.loss, self.point, moves, self.value, small, failing)
        held = [k for k, change in enumerate(found) if change <= small]
        kept = [moves[k] for k in held]
        of_all = joint_changes(self.whole, self.point, kept, self.total, small)
        for k, change in zip(held, of_all, strict=True):
            found[k] = change
        return found


def posed(
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None,
    run: Run | None,
    dtype: torch.dtype | None,
    statistics: Mapping[str, Tensor] | None = None,
    moved_inputs: MovedInputs | None = None,
    larger: bool = False,
) -> Problem:
    """The loss traced once at a point in general position.

    Args:
        larger: whether the loss is over more samples than `run` evaluates.

    Raises:
        ValueError: it cannot be evaluated there, or is not finite.
    """
    point = Point(params, dtype, statistics=statistics)
    fixed = point.statistics.keys()
    run = partial(at_leaves, run or (lambda p: (None, loss(p))), fixed=fixed)
    loss = partial(at_leaves, loss, fixed=fixed)
    pending: list[Awaited] = []
    amounts: list[Tensor] | None = None
    try:
        with point.scope():
            if larger or not point.large:
                traced = trace(run, moved(point, ()), point.statistics)
            else:
                traced, noted, graph = _traced(run, point)
                pending.append(graph)
                amounts = noted.amounts if noted.known else None
    except Exception as error:
        # whatever a model's own code raises under the recorder; the loss itself must run
        traced = untraced(point, evaluated(loss, point))
        traced.notes.append(
            f"the computation could not be recorded ({type(error).__name__}: {error}): only the "
            "order of layers in nn.Sequential and what the gradient shows were analysed"
        )
    if not bool(traced.value.isfinite().all()):
        raise NotFinite(
            f"expected a finite loss, got {float(traced.value)}: look for NaN or infinite numbers "
            "in the batch and in the parameters"
        )
    value = evaluated(loss, point) if larger else traced.value
    if value.dtype != torch.float64:  # then more is looked at before the gradient comes
        pending.clear()
    outputs: Loss | None = None
    if traced.output is not None:
        outputs = partial(output_of, run)
    generator = generator or torch.Generator().manual_seed(0)
    return Problem(
        whole=loss,
        loss=loss,
        outputs=outputs,
        every_output=outputs,
        moved_inputs=moved_inputs,
        point=point,
        total=value,
        value=value,
        made=traced.made,
        made_of_all=traced.made,
        noted=amounts,
        trace=traced,
        generator=generator,
        random=beside(value, generator),
        # of several processes each has another share, and all take one way
        dear=not point.whole or (traced.numbers >= _DEAR and not larger),
        pending=pending,
    )


def _traced(run: Run, point: Point) -> tuple[Trace, Noted, Awaited]:
    """What ran at the point, what epsilons were added to, and the value left with its graph."""
    seen: list[tuple[Trace, Noted]] = []

    def evaluate(leaves: dict[str, Tensor]) -> Tensor:
        losses: list[Tensor] = []
        noted = Noted()

        def kept(params: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
            with noted:
                output, loss = run(params)
            losses.append(loss)
            return output, loss

        seen.append((recorded(kept, leaves, Tracer(), point.statistics), noted))
        return losses[0]

    made = lambda name: moved_alone(point, name, ())
    pending = Awaited(evaluate, list(point), made)
    return *seen[-1], pending


def output_of(run: Run, params: dict[str, Tensor]) -> Tensor:
    """What the model makes there."""
    output = run(params)[0]
    assert output is not None
    return output


def loss_of(run: Run, params: dict[str, Tensor]) -> Tensor:
    """The loss there."""
    return run(params)[1]
