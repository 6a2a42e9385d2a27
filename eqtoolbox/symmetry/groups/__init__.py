"""Groups: their elements, how they are sampled, and their infinitesimal generators."""

from eqtoolbox.symmetry.groups.finite import Octahedral, Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.symmetry.groups.irregular import Strengths
from eqtoolbox.symmetry.groups.matrices import (
    E3,
    O2,
    O3,
    SE3,
    SO2,
    SO3,
    Euclidean,
    Lorentz,
    Orthogonal,
)
from eqtoolbox.symmetry.groups.products import Product, Semidirect
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations

__all__ = [
    "E3",
    "O2",
    "O3",
    "SE3",
    "SO2",
    "SO3",
    "Cyclic",
    "CyclicTranslation",
    "Dihedral",
    "Euclidean",
    "Flip",
    "Group",
    "Lorentz",
    "Octahedral",
    "Orthogonal",
    "Product",
    "Scalings",
    "Semidirect",
    "Sign",
    "Strengths",
    "Symmetric",
    "Translations",
]
