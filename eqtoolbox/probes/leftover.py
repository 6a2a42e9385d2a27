"""Leftover: what the nature of approximate symmetries leaves of first-order laws, step by step."""

from typing import Any

import torch
from torch import Tensor

from eqtoolbox.probes.law import FirstOrder
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.charges.charges import Charges


def told(
    snapshot: Snapshot, charges: Charges, size: float, state: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """The floor of first-order laws that `noether` found at this very step, and each p it tells.

    Between such steps the last p stands for what approximate laws may lack.
    """
    first: FirstOrder | None = snapshot.told.get(FirstOrder.__name__)
    if first is None or first.pull is None:
        return (0.0 if first is None else first.noise), {}
    predicted, found = charges.slopes(snapshot.before, first.pull), {}
    for family in state["left"]:
        where = charges.generators[family]
        found[family] = predicted[where]
        whole = max(size * state["lengths"][family], 1e-300)
        state["left"][family] = predicted[where].abs().cpu() / whole, whole
        charged = charges.families.get(family, slice(0, 0))  # some laws conserve nothing
        state.setdefault("left_at", {})[family] = state["scales"][charged].clone()
    state["sizes"] = sizes(snapshot.before)
    return first.noise, found


def sizes(params: Parameters) -> Tensor:
    """Norm of every weight and gain, (tensors,) in float64."""
    scaling = [p for n, p in params.items() if not n.endswith("bias")]
    norms = torch._foreach_norm(scaling) if scaling else ()
    return torch.tensor([float(n) for n in norms], dtype=torch.float64)


def shrunk(snapshot: Snapshot, state: dict[str, Any]) -> float:
    """By how much the variances that epsilons are added to may have shrunk through any tensor."""
    then = state.get("sizes")
    if not state["left"] or then is None:
        return 1.0
    now = sizes(snapshot.before)
    if not len(now):
        return 1.0
    return max(1.0, float((then / now.clamp_min(1e-300)).square().max()))
