"""Symmetries of the parameters: found, verified, and what they conserve."""

from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.found import Found

__all__ = [
    "Charges",
    "ContinuousSymmetry",
    "DiscreteSymmetry",
    "Found",
    "ParameterSymmetry",
    "discover",
]
