"""The elements that a mean over a group runs through, with weights: all of them, or a quadrature.

A rule of degree L integrates every polynomial of degree L in the entries of a rotation exactly:

    SO(2)   L + 1 angles a equal step apart
    SO(3)   Euler angles z-y-z: L + 1 times L + 1 equal steps of the first and the last, and
            L // 2 + 1 Gauss-Legendre points in the cosine of the one between

and O(n) takes the rule of SO(n) twice, once behind a reflection.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.groups.matrices import Euclidean, Orthogonal, rows
from eqtoolbox.symmetry.groups.products import Product, Semidirect

MOST = 1024  # elements that are run through at a call


@dataclass(frozen=True)
class Rule:
    """Elements, and their weights, which sum to one, unless they all weigh the same."""

    elements: tuple[Element, ...]
    weights: tuple[float, ...] | None = None


def rule(group: Group, degree: int | None = None) -> Rule:
    """All elements of a finite group, or a quadrature of a compact one that is exact to a degree.

    Raises:
        ValueError: the group has no mean over its elements, none that a sum can be, or too many.

    Example:
        >>> from eqtoolbox.symmetry.groups import SO3, Cyclic
        >>> len(rule(Cyclic(4)).elements), len(rule(SO3(), degree=2).elements)
        (4, 18)
    """
    require_mean(group)
    if group.order is not None:
        if degree is not None:
            raise ValueError(
                f"degree is for groups without end, got degree={degree} for {group.name}, whose "
                f"{group.order} elements are all taken; leave it out"
            )
        return Rule(tuple(finite(group)))
    if degree is None:
        raise ValueError(
            f"{group.name} has infinitely many elements: their mean is a sum of a few only for a "
            "function of bounded degree. If the model is one give degree=; or take a finite "
            "subgroup, such as Cyclic(8); or sampled(model, claim), which is not equivariant and "
            "states by how much"
        )
    count = _count(group, degree)
    if count > MOST:
        raise ValueError(
            f"{group.name} at degree {degree} needs {count} forwards a call, more than {MOST}; "
            "take a smaller degree, a subgroup, or sampled(model, claim)"
        )
    elements, weights = zip(*_points(group, degree), strict=True)
    return Rule(elements, weights)


def finite(group: Group) -> list[Element]:
    """All elements of a finite group.

    Raises:
        ValueError: it is not finite, cannot be undone, or has too many.
    """
    require_mean(group)
    if group.order is None:
        raise ValueError(
            f"{group.name} has infinitely many elements, which cannot be run through; take a "
            "finite subgroup, such as Cyclic(8)"
        )
    if group.order > MOST:
        raise ValueError(
            f"{group.name} has {group.order} elements, more than {MOST}, and each costs a forward "
            "a call; take a subgroup, such as Cyclic, or sampled(model, claim), which is not "
            "equivariant and states by how much"
        )
    return list(group.elements())


def require_mean(group: Group) -> None:
    """Refuse a group over whose elements there is no mean.

    Raises:
        ValueError: it cannot be undone, or is not compact.
    """
    if not group.invertible:
        raise ValueError(
            f"{group.name} cannot be undone: R_g^-1 f(S_g x) is not defined; measure it by "
            "equivariance_error, or augment the data"
        )
    if not group.uniform:
        take = "a finite or a compact part of it, such as CyclicTranslation for shifts"
        if isinstance(group, Euclidean):
            take = f"Orthogonal({group.n}, proper={group.proper}) on positions from their centre"
        raise ValueError(
            f"{group.name} is not compact: there is no mean over all its elements; take {take}"
        )


def _count(group: Group, degree: int) -> int:
    if group.order is not None:
        return group.order
    if isinstance(group, Product | Semidirect):
        return math.prod(_count(factor, degree) for factor in _factors(group))
    if isinstance(group, Orthogonal) and group.n <= 3:
        turns = {1: 1, 2: degree + 1, 3: (degree + 1) ** 2 * (degree // 2 + 1)}[group.n]
        return turns if group.proper else 2 * turns
    raise ValueError(
        f"no exact rule is known for {group.name}; take a finite subgroup, or sampled(model, "
        "claim), which is not equivariant and states by how much"
    )


def _factors(group: Product | Semidirect) -> tuple[Group, ...]:
    return group.factors if isinstance(group, Product) else (group.normal, group.acting)


def _points(group: Group, degree: int) -> list[tuple[Element, float]]:
    """The elements of a rule and their weights."""
    if group.order is not None:
        return [(g, 1.0 / group.order) for g in group.elements()]
    if isinstance(group, Product | Semidirect):
        inner = [_points(factor, degree) for factor in _factors(group)]
        pairs = (zip(*combined, strict=True) for combined in product(*inner))
        return [(tuple(g), math.prod(w)) for g, w in pairs]
    assert isinstance(group, Orthogonal)
    turns = _rotations(group.n, degree)
    if not group.proper:
        mirror = torch.diag(torch.tensor([-1.0] + [1.0] * (group.n - 1), dtype=torch.float64))
        turns = [(m, w / 2) for r, w in turns for m in (r, r @ mirror)]
    return [(rows(m), w) for m, w in turns]


def _rotations(n: int, degree: int) -> list[tuple[Tensor, float]]:
    steps = [2.0 * math.pi * k / (degree + 1) for k in range(degree + 1)]
    if n == 1:
        return [(torch.eye(1, dtype=torch.float64), 1.0)]
    if n == 2:
        return [(_turn(2, 0, 1, a), 1.0 / len(steps)) for a in steps]
    cosines, shares = np.polynomial.legendre.leggauss(degree // 2 + 1)
    found = []
    for cosine, share in zip(cosines.tolist(), shares.tolist(), strict=True):
        tilt, weight = _turn(3, 2, 0, math.acos(cosine)), share / 2.0 / len(steps) ** 2
        for a, c in product(steps, steps):
            found.append((_turn(3, 0, 1, a) @ tilt @ _turn(3, 0, 1, c), weight))
    return found


def _turn(n: int, i: int, j: int, angle: float) -> Tensor:
    """The rotation by an angle from axis i towards axis j."""
    m = torch.eye(n, dtype=torch.float64)
    m[i, i] = m[j, j] = math.cos(angle)
    m[j, i], m[i, j] = math.sin(angle), -math.sin(angle)
    return m
