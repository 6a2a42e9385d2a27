"""Compensations: biases whose shifts cancel, proposed from gradients that are the same."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.families.compensation import Compensation

EQUAL = 1e-9  # relative difference up to which two gradients are the same


def propose_compensations(
    sums: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    covered: set[str],
    equal: float = EQUAL,
) -> Iterator[Compensation]:
    """Pairs whose gradients have the same column sums, entry for entry.

    Args:
        sums: column sums of each parameter's gradient.
        shapes: of the parameters.
        covered: parameters of which a common constant is a translation already.
        equal: relative difference that counts as rounding.
    """
    lengths: dict[int, list[str]] = {}
    for name, own in sums.items():
        if len(own) > 1 and bool(own.any()):
            lengths.setdefault(len(own), []).append(name)
    order = {name: k for k, name in enumerate(sums)}
    found: list[Compensation] = []
    for names in lengths.values():
        found += _of_one_length(names, sums, shapes, covered, equal)
    yield from sorted(found, key=lambda c: order[c.second])


def _of_one_length(
    names: Sequence[str],
    sums: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    covered: set[str],
    equal: float,
) -> Iterator[Compensation]:
    done: set[str] = set()
    for first, second in alike(torch.stack([sums[n] for n in names]), equal):
        name, other = names[second], names[first]
        if name in done:
            continue
        own, largest = sums[name], sums[name].abs().max()
        close = ((own - sums[other]).abs() <= equal * largest) & (own.abs() > equal * largest)
        entries = close.nonzero().reshape(-1).cpu()
        # of two matrices only whole rows are taken: single equal sums are accidents
        if len(entries) < (len(own) if len(shapes[name]) > 1 else 1):
            continue
        done.add(name)
        centred = name in covered and other in covered and len(entries) == len(own)
        yield Compensation(
            name=f"{other}-{name}",
            dimension=len(entries) - centred,
            first=other,
            second=name,
            entries=entries,
            centred=centred,
        )


def alike(rows: Tensor, equal: float = EQUAL) -> list[tuple[int, int]]:
    """Pairs of rows that agree in some column, each with the first row it agrees with there.

    Columns are sorted, so that what agrees lies side by side and no two rows are compared that
    have nothing in common.

    Example:
        >>> alike(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 5.0], [2.0, 7.0]]))
        [(0, 2), (1, 3)]
    """
    count, columns = rows.shape
    largest = rows.abs().amax(1)
    values, at = rows.sort(0)
    bound = equal * torch.maximum(largest[at[1:]], largest[at[:-1]])
    apart = (values[1:] - values[:-1] > bound).long()
    cluster = torch.cat([apart.new_zeros(1, columns), apart.cumsum(0)])
    cluster = cluster + count * torch.arange(columns, device=rows.device)
    first = at.new_full((count * columns,), count).scatter_reduce(
        0, cluster.reshape(-1), at.reshape(-1), "amin"
    )
    pairs = torch.stack([first[cluster].reshape(-1), at.reshape(-1)], 1)
    some = values.abs() > equal * largest[at]
    pairs = pairs[(pairs[:, 0] < pairs[:, 1]) & some.reshape(-1)]
    return sorted({(a, b) for a, b in pairs.tolist()})
