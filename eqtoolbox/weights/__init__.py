"""Symmetries of the parameters: found, verified, and what they conserve."""

from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry

__all__ = ["ContinuousSymmetry", "DiscreteSymmetry", "ParameterSymmetry", "discover"]
