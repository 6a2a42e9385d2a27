"""Orbit-free sharpness: the largest curvature across the orbits, the same wherever on them.

Plain sharpness changes by any factor when a network is moved along its orbits, which changes no
prediction (Dinh et al. 2017). So does the sharpness of (I-Pi) H (I-Pi), Pi the projection on the
symmetry directions at the same point: non-orthogonal T turn H(T theta) = T^-T H(theta) T^-1 into
a matrix with other eigenvalues, across the orbit too. Both are read at the orbit's canonical
point theta* instead (`eqtoolbox.weights.orbit.canonical`), which no motion along the orbit changes:

    lambda_max of (I-Pi) H(theta*) (I-Pi), Pi the projection on all K_c(theta*)

References:
    Dinh et al. 2017 (arXiv 1703.04933) on the problem.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from eqtoolbox.linalg import top_eigenpairs
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
from eqtoolbox.weights.orbit.canonical import canonical
from eqtoolbox.weights.orbit.tangent_space import TangentSpace

ACROSS = "orbit_free_sharpness"
BALANCED = {torch.float64: 1e-13, torch.float32: 1e-7}  # what rounding leaves
SAME = 0.05  # relative change of the loss at the canonical point that is still the same network


def orbit_free_sharpness(
    snapshot: Snapshot,
    engine: Engine,
    tol: float,
    max_matvecs: int,
    rng: torch.Generator,
) -> Iterator[Measurement]:
    """The number with its residual; how often the network had to be balanced is in the note.

    Approximate symmetries (the epsilon of a normalisation) count as symmetries; what they change
    in the loss on the way to the canonical point is in the note, and above 5 % there is no number.
    """
    try:
        families = FoundSymmetries.of(snapshot).by_family()
    except NotApplicable as reason:
        note = f"{reason}: it would be the sharpness itself"
        yield Measurement(ACROSS, math.nan, status="not_applicable", note=note)
        return
    usable = [s for members in families.values() for s in members]
    dtype = max((p.dtype for p in snapshot.before.values()), key=lambda d: torch.finfo(d).eps)
    settled = BALANCED.get(dtype, 1e-7)
    try:
        point = canonical(usable, snapshot.before, settled=settled)
    except ValueError as reason:
        yield Measurement(ACROSS, math.nan, status="not_applicable", note=str(reason))
        return
    there = replace(snapshot, before={n: p.to(snapshot.before[n]) for n, p in point.params.items()})
    operator = engine.operator(there)
    space = TangentSpace(usable, there.before, tol=settled)
    with torch.no_grad():
        here = float(engine.objective(snapshot)(snapshot.before))
        change = abs(float(engine.objective(there)(there.before)) - here) / max(abs(here), 1e-300)
    note = f"across {space.dimension} symmetry directions, balanced to {point.imbalance:.0e} in "
    note += f"{point.rounds} rounds, loss changed by {change:.0e}"
    if not change <= SAME:
        yield Measurement(ACROSS, math.nan, status="not_applicable", note=note)
        return
    found = top_eigenpairs(
        operator.project_off(space.project), 1, tol=tol, max_matvecs=max_matvecs, generator=rng
    )
    settled_there = point.imbalance <= 10 * settled
    yield Measurement(
        ACROSS,
        float(found.values[0]),
        stderr=float(found.residuals[0]),
        status="ok" if bool(found.converged[0]) and settled_there else "not_converged",
        matvecs=found.matvecs,
        note=note,
    )
