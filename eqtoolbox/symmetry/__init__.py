"""Symmetries: groups acting on data and on parameters, and how far a claim about them fails."""

from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions import check_action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.discovery import discover
from eqtoolbox.symmetry.equivariance import EquivarianceResult, equivariance_error
from eqtoolbox.symmetry.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.symmetry.orbit import percent_of_loss, pulled_back
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry

__all__ = [
    "ContinuousSymmetry",
    "Cyclic",
    "CyclicTranslation",
    "Dihedral",
    "DiscreteSymmetry",
    "Equivariance",
    "EquivarianceResult",
    "Flip",
    "Group",
    "ParameterSymmetry",
    "actions",
    "check_action",
    "discover",
    "equivariance_error",
    "percent_of_loss",
    "pulled_back",
]
