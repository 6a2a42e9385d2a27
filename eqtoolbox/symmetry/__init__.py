"""Symmetries: groups acting on data and on parameters, and how far a claim about them fails."""

from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions.action import check_action
from eqtoolbox.symmetry.actions.alike import Alike, Kept
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.symmetry.asymmetry import DataAsymmetry, data_asymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, culprit
from eqtoolbox.symmetry.each import Chain, Each, Rebuilt, batch_of_one, factor, one_sample
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Octahedral, Product, Semidirect, Sign, Symmetric
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
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations
from eqtoolbox.symmetry.layerwise import LayerShare, layer_shares
from eqtoolbox.symmetry.lie import LieDerivative, lie_derivative
from eqtoolbox.symmetry.orbit import pulled_back
from eqtoolbox.symmetry.price import percent_of_loss
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry

__all__ = [
    "E3",
    "O2",
    "O3",
    "SE3",
    "SO2",
    "SO3",
    "Alike",
    "Chain",
    "ContinuousSymmetry",
    "Culprit",
    "Cyclic",
    "CyclicTranslation",
    "DataAsymmetry",
    "Dihedral",
    "Discovery",
    "DiscreteSymmetry",
    "Each",
    "Equivariance",
    "EquivarianceResult",
    "Euclidean",
    "Flip",
    "Group",
    "Kept",
    "LayerShare",
    "LieDerivative",
    "Lorentz",
    "Octahedral",
    "Orthogonal",
    "ParameterSymmetry",
    "Product",
    "Rebuilt",
    "Scalings",
    "Semidirect",
    "Sign",
    "Strengths",
    "Symmetric",
    "Translations",
    "actions",
    "batch_of_one",
    "check_action",
    "culprit",
    "data_asymmetry",
    "discover",
    "discover_data",
    "equivariance_error",
    "factor",
    "layer_shares",
    "lie_derivative",
    "one_sample",
    "percent_of_loss",
    "pulled_back",
]
