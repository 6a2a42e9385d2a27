"""Symmetries of data: groups that act on it, and how far a claim about a model fails."""

from eqtoolbox.moved import names
from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions.action import check_action
from eqtoolbox.symmetry.algebra import discover_data
from eqtoolbox.symmetry.asymmetry import data_asymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import culprit
from eqtoolbox.symmetry.each import Chain, Each, Rebuilt
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.symmetry.groups.matrices import E3, O3, SE3, SO2, SO3
from eqtoolbox.symmetry.groups.unbounded import Translations
from eqtoolbox.symmetry.layerwise import layer_shares
from eqtoolbox.symmetry.lie import LieDerivative, lie_derivative
from eqtoolbox.symmetry.orbit import pulled_back
from eqtoolbox.symmetry.price import percent_of_loss
from eqtoolbox.symmetry.result import EquivarianceResult

__all__ = [
    "E3",
    "O3",
    "SE3",
    "SO2",
    "SO3",
    "Chain",
    "Cyclic",
    "CyclicTranslation",
    "Dihedral",
    "Each",
    "Equivariance",
    "EquivarianceResult",
    "Flip",
    "Group",
    "LieDerivative",
    "Rebuilt",
    "Sign",
    "Symmetric",
    "Translations",
    "actions",
    "check_action",
    "culprit",
    "data_asymmetry",
    "discover_data",
    "equivariance_error",
    "layer_shares",
    "lie_derivative",
    "percent_of_loss",
    "pulled_back",
]

_MOVED = {
    "eqtoolbox.symmetry.actions.alike": (
        "Alike",
        "Kept",
    ),
    "eqtoolbox.symmetry.algebra": ("Discovery",),
    "eqtoolbox.symmetry.asymmetry": ("DataAsymmetry",),
    "eqtoolbox.symmetry.culprit": ("Culprit",),
    "eqtoolbox.symmetry.each": (
        "batch_of_one",
        "factor",
        "one_sample",
    ),
    "eqtoolbox.symmetry.groups.finite": (
        "Octahedral",
        "Product",
        "Semidirect",
    ),
    "eqtoolbox.symmetry.groups.irregular": ("Strengths",),
    "eqtoolbox.symmetry.groups.matrices": (
        "Euclidean",
        "Lorentz",
        "O2",
        "Orthogonal",
    ),
    "eqtoolbox.symmetry.groups.unbounded": ("Scalings",),
    "eqtoolbox.symmetry.layerwise": ("LayerShare",),
    "eqtoolbox.weights.discovery": ("discover",),
    "eqtoolbox.weights.parameter": (
        "ContinuousSymmetry",
        "DiscreteSymmetry",
        "ParameterSymmetry",
    ),
}
__getattr__ = names(__name__, {name: place for place, moved in _MOVED.items() for name in moved})
