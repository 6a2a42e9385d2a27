"""The parameter symmetries of the model at hand, found once and shared by the probes."""

from dataclasses import dataclass, field
from itertools import groupby

import torch

from eqtoolbox.snapshot import NotApplicable, Snapshot
from eqtoolbox.symmetry.charges import Charges
from eqtoolbox.symmetry.discovery import find_symmetries
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry


@dataclass
class FoundSymmetries:
    """Verified and approximate symmetries of a snapshot's loss, remembered while shapes stay."""

    _found: list[ParameterSymmetry] = field(default_factory=list)
    _shapes: dict[str, torch.Size] | None = None
    _charges: Charges | None = None
    _charges_of: list[ParameterSymmetry] | None = None

    def all(self, snapshot: Snapshot) -> list[ParameterSymmetry]:
        """Everything proposed, with its status; broken ones included.

        Raises:
            NotApplicable: no loss is known, or parameters are complex.
        """
        shapes = {n: p.shape for n, p in snapshot.before.items()}
        if shapes != self._shapes:
            if any(p.is_complex() for p in snapshot.before.values()):
                raise NotApplicable("complex parameters: their symmetries are not supported")
            with snapshot.objective.isolated():
                self._found = _find(snapshot)
            self._shapes = shapes
        return self._found

    def continuous(self, snapshot: Snapshot) -> list[ContinuousSymmetry]:
        """Usable continuous symmetries and equivariances, sorted by family.

        Raises:
            NotApplicable: there are none.
        """
        usable = [
            s
            for s in self.all(snapshot)
            if s.status in ("verified", "approximate") and isinstance(s, ContinuousSymmetry)
        ]
        if not usable:
            raise NotApplicable("no continuous parameter symmetry found in what the loss runs")
        return sorted(usable, key=lambda s: s.family)

    def by_family(self, snapshot: Snapshot) -> dict[str, list[ContinuousSymmetry]]:
        """Usable continuous symmetries of the loss (no equivariances) by family.

        Raises:
            NotApplicable: there are none.
        """
        usable = [s for s in self.continuous(snapshot) if not s.equivariant]
        if not usable:
            raise NotApplicable("no continuous parameter symmetry found in what the loss runs")
        return _grouped(usable)

    def equivariances(self, snapshot: Snapshot) -> dict[str, list[ContinuousSymmetry]]:
        """Equivariances by family: they move the outputs too."""
        found = [s for s in self.all(snapshot) if s.status in ("verified", "approximate")]
        moving = [s for s in found if isinstance(s, ContinuousSymmetry) and s.equivariant]
        return _grouped(sorted(moving, key=lambda s: s.family))

    def charges(self, snapshot: Snapshot) -> Charges:
        """The charges and laws of everything continuous, planned once; large groups sketched.

        What moves outputs and conserves nothing has neither.

        Raises:
            NotApplicable: there are none.
        """
        found = self.all(snapshot)
        if self._charges is None or self._charges_of is not found:
            members = [m for m in self.continuous(snapshot) if m.charges or not m.equivariant]
            self._charges = Charges(members, snapshot.before, sketch=True)
            self._charges_of = found
        return self._charges

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


def _grouped(found: list[ContinuousSymmetry]) -> dict[str, list[ContinuousSymmetry]]:
    return {family: list(group) for family, group in groupby(found, key=lambda s: s.family)}


def _find(snapshot: Snapshot) -> list[ParameterSymmetry]:
    """In float64; in the model's own type where the model insists on it."""
    own = snapshot.objective.single  # of one call: micro-batches share their structure
    wide = own.to(torch.float64)
    try:
        return find_symmetries(
            wide.loss,
            snapshot.before,
            run=wide.output_and_loss,
            dtype=torch.float64,
            model=own.model,
        )
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return find_symmetries(own.loss, snapshot.before, run=own.output_and_loss, model=own.model)
