"""Matrix-free linear algebra on dicts of tensors: curvature operators and their spectra."""

from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.linalg.density import SpectralDensity, spectral_density
from eqtoolbox.linalg.finite_difference import finite_difference
from eqtoolbox.linalg.gauss_newton import gauss_newton
from eqtoolbox.linalg.lanczos import EigenResult, top_eigenpairs
from eqtoolbox.linalg.operator import FunctionOperator, LinearOperator, MatrixOperator
from eqtoolbox.linalg.preconditioned import preconditioned
from eqtoolbox.linalg.subspace import energy_share, principal_angles
from eqtoolbox.linalg.trace import Estimate, SpectralMoments, spectral_moments, trace
from eqtoolbox.linalg.tracked import TrackedValue
from eqtoolbox.linalg.tracker import Tracker

__all__ = [
    "EigenResult",
    "Estimate",
    "FunctionOperator",
    "LinearOperator",
    "MatrixOperator",
    "SpectralDensity",
    "SpectralMoments",
    "TrackedValue",
    "Tracker",
    "energy_share",
    "finite_difference",
    "gauss_newton",
    "hessian",
    "preconditioned",
    "principal_angles",
    "spectral_density",
    "spectral_moments",
    "top_eigenpairs",
    "trace",
]
