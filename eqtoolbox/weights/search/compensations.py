"""Compensations: biases whose shifts cancel, proposed from gradients that are the same."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from eqtoolbox.weights.families.compensation import Compensation

_EQUAL = 1e-9  # relative difference up to which two gradients are the same


def propose_compensations(
    sums: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], covered: set[str]
) -> Iterator[Compensation]:
    """Pairs whose gradients have the same column sums, entry for entry.

    Args:
        sums: column sums of each parameter's gradient.
        shapes: of the parameters.
        covered: parameters of which a common constant is a translation already.
    """
    done: dict[int, list[str]] = {}
    for name, own in sums.items():
        if not bool(own.any()) or len(own) < 2:
            continue
        for other in done.get(len(own), []):
            close = (own - sums[other]).abs() <= _EQUAL * own.abs().max()
            close &= own.abs() > _EQUAL * own.abs().max()
            entries = close.nonzero().reshape(-1).cpu()
            # of two matrices only whole rows are taken: single equal sums are accidents
            if len(entries) < (len(own) if len(shapes[name]) > 1 else 1):
                continue
            centred = name in covered and other in covered and len(entries) == len(own)
            yield Compensation(
                name=f"{other}-{name}",
                dimension=len(entries) - centred,
                first=other,
                second=name,
                entries=entries,
                centred=centred,
            )
            break
        done.setdefault(len(own), []).append(name)
