"""Enough: as many samples of a batch as it takes to see a finite change of the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import at_leaves
from eqtoolbox.weights.epsilon import Noted
from eqtoolbox.weights.search.problem import Problem, Run, loss_of, output_of
from eqtoolbox.weights.search.verification import evaluated
from eqtoolbox.weights.tracing.trace import Node, Trace

_LEAST = 2  # samples: a loss of one against the others is none
# of a unit: of two values batch statistics make 1 and -1, and one may well lie where it is flat
_VALUES = 8
_SHARE = 0.1  # of the loss of all, by samples, up to which rounding is what it is of all
_FLAT = frozenset({
    "relu", "relu6", "clamp", "clamp_min", "clamp_max", "hardtanh", "hardsigmoid", "hardswish",
    "leaky_relu", "threshold", "prelu", "rrelu", "rrelu_with_noise", "hardshrink", "softshrink",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Divisible:
    """A batch that can be cut: how many samples it has, and what runs on the first of them."""

    count: int
    first: Callable[[int], Run]


def on_few(problem: Problem, samples: Divisible | None) -> Problem:
    """The problem of a large model with few samples for what fails, where these do.

    Whatever is verified keeps the loss of all samples, each way and back: some of them alone may
    lie beyond a kink, or in an expert's share. So is order 1 of all, and with it which units are
    inert and what is proposed.
    """
    point = problem.point
    if samples is None or point.whole or problem.value.dtype != torch.float64:
        return problem
    number = enough(problem.trace, samples.count)
    if 2 * number > samples.count:
        return problem
    seen: list[Tensor] = []
    try:
        run = partial(at_leaves, samples.first(number), fixed=point.statistics.keys())

        def both(params: dict[str, Tensor]) -> Tensor:
            with noted:
                output, loss = run(params)
            seen.extend(() if output is None else [output.detach().clone()])
            return loss

        noted = Noted()
        value = evaluated(both, point)
    except Exception:  # whatever a loss says to a part of its batch
        return problem
    if len(seen) != (problem.outputs is not None):
        return problem
    if not all(bool(x.isfinite().all()) and bool(x.any()) for x in (value, *seen)):
        return problem
    if abs(float(value)) < _SHARE * abs(float(problem.total)) * number / samples.count:
        return problem  # as of samples that are learned, whose loss is next to rounding
    return replace(
        problem,
        loss=partial(loss_of, run),
        outputs=partial(output_of, run) if seen else None,
        made=seen[0] if seen else None,
        value=value,
        noted=noted.amounts if noted.known else None,
    )


def enough(trace: Trace, count: int) -> int:
    """Samples on which batch statistics are some and units are lit, of a trace on `count`."""
    shapes = [n.args[0].shape for n in trace.nodes if clips(n) or "batch_norm" in n.name]
    values = [math.prod(shape) // max(shape[1:]) for shape in shapes if len(shape) > 1]
    each = min(values, default=_VALUES * count) / count
    return max(_LEAST, math.ceil(_VALUES / max(each, 1e-9)))


def clips(node: Node) -> bool:
    """Whether an operation has a kink, or is flat somewhere."""
    return node.name.rstrip("_") in _FLAT
