"""Matrix-free linear algebra on dicts of tensors: curvature operators and their spectra."""

from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.linalg.finite_difference import finite_difference
from eqtoolbox.linalg.gauss_newton import gauss_newton
from eqtoolbox.linalg.lanczos import EigenResult, top_eigenpairs
from eqtoolbox.linalg.operator import FunctionOperator, LinearOperator, MatrixOperator
from eqtoolbox.linalg.preconditioned import preconditioned
from eqtoolbox.linalg.subspace import energy_share, principal_angles

__all__ = [
    "EigenResult",
    "FunctionOperator",
    "LinearOperator",
    "MatrixOperator",
    "energy_share",
    "finite_difference",
    "gauss_newton",
    "hessian",
    "preconditioned",
    "principal_angles",
    "top_eigenpairs",
]
