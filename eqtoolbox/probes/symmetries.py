"""The parameter symmetries of the model at hand, found once and shared by the probes."""

from dataclasses import dataclass, field
from itertools import groupby

import torch

from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry.discovery import find_symmetries
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry


@dataclass
class FoundSymmetries:
    """Verified and approximate symmetries of a snapshot's loss, remembered while shapes stay."""

    _found: list[ParameterSymmetry] = field(default_factory=list)
    _shapes: dict[str, torch.Size] | None = None

    def all(self, snapshot: Snapshot) -> list[ParameterSymmetry]:
        """Everything proposed, with its status; broken ones included.

        Raises:
            NotApplicable: no loss is known, or parameters are complex.
        """
        shapes = {n: p.shape for n, p in snapshot.before.items()}
        if shapes != self._shapes:
            if any(p.is_complex() for p in snapshot.before.values()):
                raise NotApplicable("complex parameters: their symmetries are not supported")
            self._found = _find(snapshot)
            self._shapes = shapes
        return self._found

    def by_family(self, snapshot: Snapshot) -> dict[str, list[ContinuousSymmetry]]:
        """Usable continuous symmetries of the loss (no equivariances) by family.

        Raises:
            NotApplicable: there are none.
        """
        usable = [
            s
            for s in self.all(snapshot)
            if s.status in ("verified", "approximate")
            and isinstance(s, ContinuousSymmetry)
            and not s.equivariant
        ]
        if not usable:
            raise NotApplicable("no continuous parameter symmetry found in what the loss runs")
        usable.sort(key=lambda s: s.family)
        return {family: list(group) for family, group in groupby(usable, key=lambda s: s.family)}

    def discrete(self, snapshot: Snapshot) -> dict[str, list[DiscreteSymmetry]]:
        """Verified discrete symmetries of the loss by family.

        Raises:
            NotApplicable: there are none.
        """
        found: dict[str, list[DiscreteSymmetry]] = {}
        for s in self.all(snapshot):
            if isinstance(s, DiscreteSymmetry) and s.status == "verified":
                found.setdefault(s.family, []).append(s)
        if not found:
            raise NotApplicable("no discrete parameter symmetry found in what the loss runs")
        return found


def _find(snapshot: Snapshot) -> list[ParameterSymmetry]:
    """In float64; in the model's own type where the model insists on it."""
    wide = snapshot.objective.to(torch.float64)
    try:
        params = {n: p.double() for n, p in snapshot.before.items()}
        return find_symmetries(wide.loss, params, run=wide.output_and_loss)
    except RuntimeError:
        own = snapshot.objective
        return find_symmetries(own.loss, snapshot.before, run=own.output_and_loss)
