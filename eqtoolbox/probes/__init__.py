"""Probes: what is measured of a step."""

from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.critical import CriticalSharpness
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.histograms import Histograms
from eqtoolbox.probes.learned import LearnedAlgebra
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.tracking import Tracking

__all__ = [
    "Asymmetry",
    "Conservation",
    "CriticalSharpness",
    "Curvature",
    "Discrete",
    "EquivarianceError",
    "Histograms",
    "LearnedAlgebra",
    "Noether",
    "Spectrum",
    "Tracking",
]
