"""Asymmetry: how far a linear map is from a symmetric one, from a few of its products."""

import math
from itertools import combinations

import torch

from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import dot, norm, random_like

VECTORS = 4  # products; six pairs of them


def asymmetry(jacobian: LinearOperator, generator: torch.Generator) -> float:
    """|J - J^T| / |J| in the Frobenius norm: 0 for a symmetric map, 2 for an antisymmetric one.

    For u and w of independent normal entries <u, Jw> - <w, Ju> has the variance |J - J^T|^2 and
    |Jw|^2 the mean |J|^2. Six pairs give the ratio within a factor of 2 or so.

    Args:
        jacobian: a square map, which need not be symmetric.
        generator: of the random vectors.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> asymmetry(MatrixOperator([[2.0, 1.0], [1.0, 3.0]]), torch.Generator()) < 1e-6
        True
    """
    like = {n: x.expand(x.shape) for n, x in jacobian.space.like.items()}
    vectors = [random_like(like, generator) for _ in range(VECTORS)]
    products = [jacobian(v) for v in vectors]
    size = sum(norm(p) ** 2 for p in products) / VECTORS
    pairs = list(combinations(zip(vectors, products, strict=True), 2))
    gaps = [dot(u, jw) - dot(w, ju) for (u, ju), (w, jw) in pairs]
    return math.sqrt(sum(g * g for g in gaps) / len(gaps) / size) if size else 0.0
