"""General linear: an axis that only linear maps touch, transformed by matrices."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from eqtoolbox.weights.forms.algebra import COMPLEX, GENERAL, Algebra
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class MatrixSymmetry(ContinuousSymmetry):
    """T_A: in -> e^A in, out -> out e^-A for every block, A in the family's algebra."""

    algebra: ClassVar[Algebra]
    legs: tuple[MatrixLeg, ...]

    @cached_property
    def form(self) -> Gram:
        return Gram.of(self.legs, self.dimension, self.algebra)

    @property
    def blocks(self) -> int:
        """Number of blocks (heads)."""
        return self.form.blocks

    @property
    def size(self) -> int:
        """d, the size of a block's matrix."""
        return self.form.size


@dataclass(frozen=True, kw_only=True)
class GeneralLinear(MatrixSymmetry):
    """GL(d): linear-linear, query-key and value-output of each head, low-rank adapters.

    T_A: W1 -> e^A W1, b1 -> e^A b1, W2 -> W2 e^-A; grouped queries share the matrix of their key.
    Symmetric A conserve D = W1 W1^T + b1 b1^T - W2^T W2: d (d + 1) / 2 charges <A, D> / 2 a block,
    of orthonormal A, so that their norm |D| / 2 is the same in every basis of the axis; for
    antisymmetric A the laws hold and nothing is conserved.

    References:
        Arora et al. 2018 (arXiv 1802.06509); Marcotte et al. 2023 (arXiv 2307.00144).
    """

    family: ClassVar[str] = "general_linear"
    algebra: ClassVar[Algebra] = GENERAL
    strength: ClassVar[float] = 0.1


@dataclass(frozen=True, kw_only=True)
class Rope(MatrixSymmetry):
    """GL(1, C), what commutes with a rotary position embedding: a + b J on every rotated pair.

    T: (q_j, q_j') -> e^(a + bJ), (k_j, k_j') -> e^(-a + bJ), J = [[0, -1], [1, 0]]. Coefficients
    are all a, then all b; Q = (|q pair|^2 - |k pair|^2) / 2 for a, none for b.

    References:
        Su et al. 2021 (arXiv 2104.09864) for the embedding.
    """

    family: ClassVar[str] = "rope"
    algebra: ClassVar[Algebra] = COMPLEX
