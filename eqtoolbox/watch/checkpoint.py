"""A checkpoint: what `Monitor.state_dict` holds, looked through before any of it is taken."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Natural
from eqtoolbox.watch.journal import Journal
from eqtoolbox.world.world import Retired, World

PARTIAL = (
    "load_state_dict() was called here and not on every rank; all ranks load the state of the "
    "first one, or none loads any"
)
NEEDED: dict[str, Any] = {
    "step": Natural,
    "references": Mapping[str, Any],
    "disabled": Sequence[str],
    "budget": Mapping[str, Any],
}
FURTHER: dict[str, Any] = {
    "kept": Sequence[str],
    "halved": Sequence[str],
    "checked": bool,
    "summed": bool,
    "skipped": Mapping[str, Natural],
    "shared": Mapping[str, Any],
    "vitals": str,
    "shapes": Mapping[str, Sequence[Natural]],
}
BUDGET: dict[str, Any] = {
    "training": float,
    "probing": float,
}
OF_BUDGET: dict[str, Any] = {
    "setup": float,
    "first": Natural | None,
    "costs": Mapping[str, float],  # of an older version, instead of wishes
    "wishes": Mapping[str, Mapping[str, float | None]],
}


def check_state(state: Any) -> None:
    """Refuse what no monitor has saved.

    Raises:
        KeyError: something is missing.
        TypeError, ValueError: something is of another kind.

    Example:
        >>> check_state({"step": 3, "references": {}, "disabled": []})
        Traceback (most recent call last):
        KeyError: "expected the state of a Monitor, got one without ['budget']"
    """
    fitted("state", state, Mapping[str, Any])
    _have("state", state, NEEDED, "the state of a Monitor")
    _have("state['budget']", state["budget"], BUDGET, "the budget of a Monitor's state")
    for name in FURTHER.keys() & state.keys():
        fitted(f"state[{name!r}]", state[name], FURTHER[name])
    try:
        fitted("what state['vitals'] holds", json.loads(state.get("vitals") or "{}"), Mapping)
    except json.JSONDecodeError as error:
        raise ValueError(f"state['vitals'] must be JSON, got {state['vitals'][:40]!r}") from error
    lost = {*state.get("kept", ())} - state["references"].keys()
    if lost:
        raise ValueError(
            f"expected what {', '.join(sorted(lost))} measured from, which was saved, but a "
            "distributed load fills only what is there already: save and load "
            "eqtoolbox.integrations.distributed.DistributedState(monitor) instead of the monitor"
        )
    for name in OF_BUDGET.keys() & state["budget"].keys():
        fitted(f"state['budget'][{name!r}]", state["budget"][name], OF_BUDGET[name])


def meet(world: World, journal: Journal) -> None:
    """Take a state together with all other ranks.

    Raises:
        Retired: another rank takes none.
    """
    try:
        world.each("load_state_dict()", None)
    except Retired:
        journal.warn("monitor", PARTIAL)
        raise


def _have(where: str, table: Mapping[str, Any], kinds: Mapping[str, Any], what: str) -> None:
    missing = kinds.keys() - table.keys()
    if missing:
        raise KeyError(f"expected {what}, got one without {sorted(missing)}")
    for name, kind in kinds.items():
        fitted(f"{where}[{name!r}]", table[name], kind)
