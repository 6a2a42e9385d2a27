"""Enough: as many samples of a batch as it takes to see a finite change of the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import at_leaves
from eqtoolbox.weights.search.problem import MovedInputs, Problem, Run, loss_of, output_of
from eqtoolbox.weights.search.verification import evaluated
from eqtoolbox.weights.tracing.trace import Trace

_LEAST = 2  # samples: a loss of one against the others is none
_VALUES = 8  # of a channel that batch statistics are taken of: of two every one is 1 or -1


@dataclass(frozen=True, kw_only=True)
class Divisible:
    """A batch that can be cut: how many samples it has, and what runs on the first of them."""

    count: int
    first: Callable[[int], tuple[Run, MovedInputs]]


def on_few(problem: Problem, samples: Divisible | None) -> Problem:
    """The problem with finite changes of a large model looked at on few samples, where these do.

    A change that order 1 does not see on all samples is one for every sample, so that any shows
    it. What is proposed, order 1 and which units are inert is for the gradient of all to say.
    """
    point = problem.point
    if samples is None or point.whole or problem.value.dtype != torch.float64:
        return problem
    number = enough(problem.trace, samples.count)
    if 2 * number > samples.count:
        return problem
    seen: list[Tensor] = []
    try:
        run, moved_inputs = samples.first(number)
        run = partial(at_leaves, run, fixed=point.statistics.keys())

        def both(params: dict[str, Tensor]) -> Tensor:
            output, loss = run(params)
            seen.extend(() if output is None else [output.detach().clone()])
            return loss

        value = evaluated(both, point)
    except (RuntimeError, TypeError, ValueError, LookupError):  # no part of this batch will do
        return problem
    if not bool(value.isfinite().all()) or not bool(value.any()):
        return problem
    if len(seen) != (problem.outputs is not None):
        return problem
    return replace(
        problem,
        loss=partial(loss_of, run),
        outputs=partial(output_of, run) if seen else None,
        made=seen[0] if seen else None,
        value=value,
        moved_inputs=None if problem.moved_inputs is None else moved_inputs,
    )


def enough(trace: Trace, count: int) -> int:
    """Samples on which batch statistics are still statistics, of a trace on `count` of them."""
    values = [
        math.prod(node.args[0].shape) // node.args[0].shape[1]
        for node in trace.nodes
        if "batch_norm" in node.name and len(node.args[0].shape) > 1
    ]
    each = min(values, default=_VALUES * count) / count
    return max(_LEAST, math.ceil(_VALUES / max(each, 1e-9)))
