"""What rounding leaves of first-order laws: their floors, as a run begins or an act moves it."""

import math

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import norms
from eqtoolbox.probes.float64 import rounding
from eqtoolbox.probes.law import moved_by
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import NoRoom, Snapshot
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.world.shards import Shards

USUAL = 10.0  # roundings of |g| that were met in a GPT and a ResNet: 5 and 10


def law_noise(
    snapshot: Snapshot, charges: Charges, lengths: dict[str, float], rng: torch.Generator
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[Tensor, float]]]:
    """What rounding leaves of the first-order law of each family: absolute, and over |g|.

    The change of <K, g> / |K| when every parameter moves by a rounding, evaluated as trained; where
    there is no room for a gradient, ten roundings of |g|. Beside it, of approximate families:
    |<K, g>| / (|K| |g|) of every generator now, at least the residual as found where the gradient
    shows none, and |K| |g|.
    """
    objective = snapshot.training or snapshot.measured
    assert objective is not None, "symmetries were found in it"
    before, shards, wide = snapshot.before, snapshot.shards, Parameters()
    try:
        part = snapshot.within(objective, 2.5, 1.3, once=True)
    except NoRoom:
        given = snapshot.whole_gradient
        if given is None:
            raise
        size, law = _norm(given, shards), charges.slopes(before, given)
        change = torch.zeros_like(law)
        least = USUAL * max(torch.finfo(p.dtype).eps for p in before.values()) * size
    else:
        least = 0.0
        with part.isolated():  # where symmetries are found anew, `measure` runs without
            slope = snapshot.slope(part) if part is objective else replayed_gradient(part, before)
            here = _filled(slope, before)
            size, law = _norm(here, shards), charges.slopes(before, here)
            del slope
            wide = _wide(snapshot, part, here)
            del here
            there = replayed_gradient(part, moved_by(before, 0.0, rng))
            change = charges.slopes(before, _filled(there, before)) - law
    found, left = {}, {}
    for family, where in charges.generators.items():
        members = [m for m in charges.members if m.family == family]
        noise = max(float(change[where].norm()) / max(lengths[family], 1e-300), least)
        off = {n: wide[n] for m in members for n in m.names if n in wide}
        noise = max(noise, _norm(off, shards) if off else 0.0)
        found[family] = (noise, noise / max(size, 1e-300))
        known = [m.residual for m in members if m.status == "approximate"]
        if known:
            whole, own = lengths[family] * size, law[where].abs().cpu()
            shown = own.norm() > change[where].norm().cpu()
            residual = torch.full_like(own, max(known) / math.sqrt(len(own)))
            left[family] = own / max(whole, 1e-300) if shown else residual, whole
    return found, left


def _wide(snapshot: Snapshot, part: Objective, here: Parameters) -> Parameters:
    """The rounding of the gradient, in float64; empty where there is no room for it.

    Args:
        snapshot: of the step.
        part: of the loss.
        here: its gradient.
    """
    try:
        smaller = snapshot.within(part, 5.5, 2.6, once=True)
    except NoRoom:  # then the floor is what moving by a rounding shows alone
        return {}
    own = smaller.unmixed()
    if smaller is not part:
        here = _filled(replayed_gradient(own, snapshot.before), snapshot.before)
    return rounding(own, snapshot.before, here)


def _filled(gradient: Parameters, params: Parameters) -> Parameters:
    """Zero where a parameter takes no part."""
    return {n: gradient[n] if n in gradient else torch.zeros_like(p) for n, p in params.items()}


def _norm(tensors: Parameters, shards: Shards) -> float:
    """Norm over all tensors."""
    return float(shards.norms(norms(tensors.values()), [*tensors]).norm())
