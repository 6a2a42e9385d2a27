"""Bias shifts: biases that a later one makes up for, proposed from what reads them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from eqtoolbox.weights.families.bias_shift import BiasShift
from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.search.constants import Uses, readers
from eqtoolbox.weights.tracing.trace import Trace

EQUAL = 1e-6  # relative difference up to which the gradient proposes


@dataclass(frozen=True, kw_only=True)
class Read:
    """A vector with what reads it, and how much of it each reader does."""

    name: str
    length: int
    width: int
    readers: tuple[Reader, ...]


def vectors_read(trace: Trace) -> Iterator[Read]:
    """Vectors that only linear maps before biases read."""
    uses, shapes = Uses.of(trace), {n: tuple(v.shape) for n, v in trace.parameters.items()}
    for name, value in trace.parameters.items():
        if len(value.shape) != 1 or len(uses.readers.get(value.number, [])) != 1:
            continue
        made = uses.readers[value.number][0].outputs[0]
        if made is None:
            continue
        found = tuple(r for r in dict.fromkeys(readers(uses, made)) if r.fits(shapes))
        widths = {r.maps[0].width(shapes[r.maps[0].name]) for r in found}
        if len(widths) == 1 and name not in {r.bias for r in found}:
            yield Read(name=name, length=value.shape[0], width=widths.pop(), readers=found)


def propose_bias_shifts(
    read: Iterable[Read],
    pulled: Callable[[Reader], Tensor],
    gradient: Mapping[str, Tensor],
    equal: float = EQUAL,
) -> Iterator[BiasShift]:
    """Vectors whose gradient is M^T of the gradient of the biases after them, to rounding.

    Args:
        read: the vectors.
        pulled: M^T of the gradient of a reader's bias.
        gradient: of the vectors.
        equal: relative difference that counts as rounding.
    """
    for vector in read:
        back = sum(pulled(r) for r in vector.readers)
        for offset in range(0, vector.length - vector.width + 1, vector.width):
            own = gradient[vector.name][offset : offset + vector.width]
            if float((own - back).norm()) <= equal * float(own.norm()):
                yield BiasShift(
                    name=vector.name,
                    dimension=vector.width,
                    source=vector.name,
                    offset=offset,
                    readers=vector.readers,
                )
