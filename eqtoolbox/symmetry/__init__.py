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
    "actions.alike": "Alike Kept",
    "algebra": "Discovery",
    "asymmetry": "DataAsymmetry",
    "culprit": "Culprit",
    "each": "batch_of_one factor one_sample",
    "groups": "Euclidean Lorentz O2 Octahedral Orthogonal Product Scalings Semidirect Strengths",
    "layerwise": "LayerShare",
}
_WEIGHTS = "ContinuousSymmetry DiscreteSymmetry ParameterSymmetry discover"
__getattr__ = names(
    __name__,
    {name: f"{__name__}.{place}" for place, moved in _MOVED.items() for name in moved.split()}
    | dict.fromkeys(_WEIGHTS.split(), "eqtoolbox.weights"),
)
