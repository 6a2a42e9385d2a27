"""What rounding leaves of first-order laws: their floors, as a run begins or an act moves it."""

import math

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import norms, random_like
from eqtoolbox.probes.law import rounding
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import NoRoom, Snapshot
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.world.shards import Shards


def law_noise(
    snapshot: Snapshot, charges: Charges, lengths: dict[str, float], rng: torch.Generator
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[Tensor, float]]]:
    """What rounding leaves of the first-order law of each family: absolute, and over |g|.

    The change of <K, g> / |K| when every parameter moves by a rounding, evaluated as trained.
    Beside it, of approximate families: |<K, g>| / (|K| |g|) of every generator now, at least the
    residual as found where the gradient shows none, and |K| |g|.
    """
    objective = snapshot.training or snapshot.measured
    assert objective is not None, "symmetries were found in it"
    before, part = snapshot.before, snapshot.within(objective, 3.5, 1.3)
    shards = snapshot.shards
    eps = {n: torch.finfo(p.dtype).eps for n, p in before.items()}
    moved = {n: p * (1 + eps[n] * random_like({n: p}, rng)[n]) for n, p in before.items()}
    with part.isolated():  # where symmetries are found anew, `measure` runs without
        there = replayed_gradient(part, moved)
        del moved
        slope = snapshot.slope(part) if part is objective else replayed_gradient(part, before)
        here = {n: slope[n] if n in slope else torch.zeros_like(p) for n, p in before.items()}
        apart = {n: there.pop(n) - g if n in there else -g for n, g in here.items()}
        size, change = _norm(here, shards), charges.slopes(before, apart)
        law = charges.slopes(before, here)
        del apart
        try:
            snapshot.within(part, 5.5, 2.6)
            wide = rounding(part.unmixed(), before, here)
        except NoRoom:  # then the floor is what moving by a rounding shows alone
            wide = {}
    found, left = {}, {}
    for family, where in charges.generators.items():
        members = [m for m in charges.members if m.family == family]
        noise = float(change[where].norm()) / max(lengths[family], 1e-300)
        off = {n: wide[n] for m in members for n in m.names if n in wide}
        noise = max(noise, _norm(off, shards) if off else 0.0)
        found[family] = (noise, noise / max(size, 1e-300))
        known = [m.residual for m in members if m.status == "approximate"]
        if known:
            whole, own = lengths[family] * size, law[where].abs().cpu()
            shown = own.norm() > change[where].norm().cpu()
            least = torch.full_like(own, max(known) / math.sqrt(len(own)))
            left[family] = own / max(whole, 1e-300) if shown else least, whole
    return found, left


def _norm(tensors: Parameters, shards: Shards) -> float:
    """Norm over all tensors."""
    return float(shards.norms(norms(tensors.values()), [*tensors]).norm())
