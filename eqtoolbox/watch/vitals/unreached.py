"""Unreached: parameters that the optimizer holds and that no measured step gave a gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eqtoolbox.linalg.vectors import norms
from eqtoolbox.watch.snapshot import Snapshot

NAMED = 6  # layers that are told


@dataclass(frozen=True, kw_only=True)
class WithoutGradient:
    """What is left of the parameters without a gradient."""

    entries: int
    total: int  # entries of all that the optimizer holds
    layers: list[str]
    before: bool  # whether one is used before one that has a gradient
    steps: int  # that were looked at


class Unreached:
    """Parameters without a gradient at any step so far, which did not move in between either.

    What rests at times, as an expert of a mixture or the head of another task, has moved since.
    """

    def __init__(self) -> None:
        self._left: dict[str, float] | None = None  # their norms at the first step
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What later steps are compared with."""
        return {"unreached": self._left, "looked": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        left = state.get("unreached")
        self._left = None if left is None else dict(left)
        self._steps = int(state.get("looked", 0))

    def look(
        self, snapshot: Snapshot, gradient: Mapping[str, Tensor], order: Sequence[str]
    ) -> WithoutGradient:
        """What is left after a step.

        Args:
            snapshot: of the step.
            gradient: of its loss, without parameters that the loss does not depend on.
            order: names of weights as they were used.
        """
        after, used, known = snapshot.after or {}, snapshot.gradient or {}, self._left
        held = [n for n in after if snapshot.group_of(n) is not None]
        none = [n for n in held if n not in gradient and (known is None or n in known)]
        none = [n for n in none if n not in used or not bool(used[n].any())]  # zeros: none set
        if known is None:
            known = _norms(snapshot.before, none)
        now = _norms(after, none)
        self._left = {n: known[n] for n in none if now[n] == known[n]}
        self._steps += 1
        layers = dict.fromkeys(n.rpartition(".")[0] or n for n in self._left)
        first = next((k for k, n in enumerate(order) if n in self._left), len(order))
        return WithoutGradient(
            entries=sum(after[n].numel() for n in self._left),
            total=sum(after[n].numel() for n in held),
            layers=list(layers)[:NAMED],
            before=any(n in gradient for n in order[first:]),
            steps=self._steps,
        )


def _norms(of: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, norms(of[n] for n in names).tolist(), strict=True))
