"""Bias shifts: biases that a later one makes up for, proposed from what reads them."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from eqtoolbox.weights.families.bias_shift import BiasShift
from eqtoolbox.weights.search.constants import Uses, readers
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.tracing.trace import Trace

_EQUAL = 1e-6  # relative difference up to which the gradient proposes


def propose_bias_shifts(
    trace: Trace, point: Point, gradient: Mapping[str, Tensor]
) -> Iterator[BiasShift]:
    """Vectors whose gradient is M^T of the gradient of the biases after them, to rounding."""
    uses = Uses.of(trace)
    for name, value in trace.parameters.items():
        if len(value.shape) != 1 or len(uses.readers.get(value.number, [])) != 1:
            continue
        made = uses.readers[value.number][0].outputs[0]
        if made is None:
            continue
        found = tuple(dict.fromkeys(readers(uses, made)))
        widths = {r.maps[0].width(tuple(trace.parameters[r.maps[0].name].shape)) for r in found}
        if len(widths) != 1 or name in {r.bias for r in found}:
            continue
        width = widths.pop()
        params = {m.name: point.read(m.name) for r in found for m in r.maps}
        pulled = sum(r.pulled(params, gradient[r.bias]) for r in found)
        for offset in range(0, value.shape[0] - width + 1, width):
            own = gradient[name][offset : offset + width]
            if float((own - pulled).norm()) <= _EQUAL * float(own.norm()):
                yield BiasShift(
                    name=name, dimension=width, source=name, offset=offset, readers=found
                )
