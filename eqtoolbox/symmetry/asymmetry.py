"""Asymmetry of data: how far pairs (x, y) and moved pairs (S_g x, R_g y) are from one law."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.record.record import Verdict
from eqtoolbox.symmetry.actions.action import inside_of
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.orbit import double
from eqtoolbox.symmetry.structure import Tree, batch_size, on_tensors, tensors

_SHUFFLES = 199  # random exchanges that the null distribution is made of
_ELEMENTS = 8  # group elements that the samples are dealt among
_FEWEST = 8  # samples
_LARGEST = 512  # samples used: distances are quadratic in them
_NUMBERS = 2**24  # numbers held at most: of large images fewer samples are used


@dataclass(frozen=True, kw_only=True)
class DataAsymmetry:
    """Distance of a data set from its transformed self, beside that of random exchanges."""

    coefficient: float  # energy coefficient, 0 same distribution, 1 nothing in common
    floor: float  # its 95 % quantile under random exchanges
    p_value: float  # share of random exchanges that are as far apart
    verdict: Verdict  # violated: p <= 0.01; holds: p > 0.1, as far as so many samples can tell
    samples: int  # pairs used

    _repr_html_ = notebook.by_fields


@checked
def data_asymmetry(
    inputs: Tree,
    targets: Tree | None,
    symmetry: Claimed,
    *,
    generator: torch.Generator | None = None,
) -> DataAsymmetry:
    """Whether data look the same after a transformation, by the energy distance to themselves.

        1 - (E d(a, a') + E d(b, b')) / (2 E d(a, b)),   a = (x, y),  b = (S_g x, R_g y)

    with g uniform without e, samples paired with their own images left out, and d the Euclidean
    distance, inputs and targets scaled to count alike; classes are at distance 0 or 1. For
    symmetric data exchanging a sample with its image changes nothing: random exchanges give floor
    and p-value.

    Percent of loss and every orbit average assume symmetric data: this is the check. It sees
    differences of distribution, with the power that so few samples have; a target that breaks the
    symmetry while x does not is seen through the joint distribution.

    Args:
        inputs: x, (batch, ...) or a tree of such, at least 8 samples; 512 at most are used.
        targets: y, (batch, ...) or a tree of such, moved by the output action, classes (batch,) by
            none; None for x alone.
        symmetry: the claim.
        generator: draws elements and exchanges; a new one with seed 0 unless given.

    Raises:
        ValueError: too few samples, or targets that the output action does not fit.

    Reference: Szekely & Rizzo 2013, Energy statistics, doi 10.1016/j.jspi.2013.03.018.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import trivial
        >>> from eqtoolbox.symmetry.actions.linear import vectors
        >>> from eqtoolbox.symmetry.groups.matrices import SO2
        >>> x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> turn = Equivariance(SO2(), vectors, trivial)
        >>> data_asymmetry(x, None, turn).verdict
        'holds'
        >>> data_asymmetry(x * torch.tensor([3.0, 1.0]), None, turn).verdict
        'violated'
    """
    count = batch_size(inputs)
    if count < _FEWEST:
        raise ValueError(f"data asymmetry needs at least {_FEWEST} samples, got {count} in inputs")
    if targets is not None and batch_size(targets) != count:
        raise ValueError(f"expected {count} targets, got {batch_size(targets)}")
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    width = sum(x[0].numel() for x in tensors(inputs))
    most = max(_FEWEST, min(_LARGEST, _NUMBERS // max(width, 1)))
    order = torch.randperm(count, generator=rng, device=rng.device).cpu()[:most]
    hands = _dealt(order, symmetry, rng)
    order = torch.cat([rows for rows, _ in hands])
    act = symmetry.input_action
    pool = [_rows(inputs, order)] + [act(g, _rows(inputs, rows)) for rows, g in hands]
    distances = _distances([inside_of(act, x) for x in pool])
    if targets is not None:
        images = [_moved(symmetry, g, _rows(targets, rows)) for rows, g in hands]
        own = _moved(symmetry, symmetry.group.identity, _rows(targets, order))
        distances = (distances.square() + _distances([own, *images]).square()).sqrt()
    swaps = torch.randint(2, (_SHUFFLES, len(order)), generator=rng, device=rng.device).cpu()
    signs = torch.cat([torch.ones(1, len(order), dtype=torch.int64), 1 - 2 * swaps]).double()
    coefficients = _coefficients(distances, signs)
    found, null = float(coefficients[0]), coefficients[1:]
    p = (1 + int((null >= found).sum())) / (1 + _SHUFFLES)
    return DataAsymmetry(
        coefficient=max(found, 0.0),
        floor=max(float(null.quantile(0.95)), 0.0),
        p_value=p,
        verdict="violated" if p <= 0.01 else "holds" if p > 0.1 else "unresolved",
        samples=len(order),
    )


def _dealt(
    rows: Tensor, symmetry: Equivariance, rng: torch.Generator
) -> list[tuple[Tensor, object]]:
    """Samples dealt among a few elements other than the identity."""
    group = symmetry.group
    if group.order is not None and group.order <= _ELEMENTS:
        elements = [g for g in group.elements() if g != group.identity]
    else:
        drawn = group.sample(2 * _ELEMENTS, rng)
        elements = [g for g in drawn if g != group.identity][:_ELEMENTS]
    hands = [(rows[i :: len(elements)], g) for i, g in enumerate(elements)]
    return [(hand, g) for hand, g in hands if len(hand)]


def _rows(tree: Tree, rows: Tensor) -> Tree:
    return on_tensors(lambda x: x[rows.to(x.device)], tree)


def _moved(symmetry: Equivariance, g: object, targets: Tree) -> Tree:
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return targets
    act = symmetry.output_action
    return inside_of(act, act(g, targets))


def _distances(parts: list[Tree]) -> Tensor:
    """Pairwise distances of all samples, with mean 1; of classes 0 or 1."""
    leaves = [torch.cat(same) for same in zip(*[tensors(p) for p in parts], strict=True)]
    total: Tensor | float = 0.0
    for x in leaves:
        if x.is_floating_point():
            flat = double(x).cpu()
            square = torch.cdist(flat, flat).square()
        else:
            flat = x.reshape(len(x), -1).cpu()
            square = (flat[:, None] != flat[None]).any(-1).double()
        scale = float(square.mean())
        total = total + square / scale if scale > 0 else total + square
    assert isinstance(total, Tensor)
    return total.sqrt()


def _coefficients(distances: Tensor, signs: Tensor) -> Tensor:
    """One coefficient a row of signs, -1 where a sample and its image change places.

    With c = 1 for samples and -1 for images, within - between is c^T D c; pairs and the diagonal
    are left out of D. Between and within have the same number of terms, so that the mean over both
    stands for the denominator, and the value may come out below zero.
    """
    n = len(distances) // 2
    d = distances.clone()
    same = torch.arange(n)
    for i, j in ((0, 0), (0, n), (n, 0), (n, n)):
        d[same + i, same + j] = 0.0
    c = torch.cat([signs, -signs], dim=1)
    apart = -((c @ d) * c).sum(1)  # between - within
    between = (d.sum() + apart) / 2
    return apart / between
