"""The parameter symmetries of the loss at hand, found once a run and shared by its probes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch

from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.statistics import running
from eqtoolbox.watch.snapshot import NoRoom, NotApplicable, Snapshot
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.found import Found, KnownSymmetries

logger = logging.getLogger("eqtoolbox")
# copies of the parameters and graphs of one evaluation that a search takes
WIDE, NARROW = (2.3, 4.0), (1.3, 2.0)  # in float64, in the parameters' own type
Families = dict[str, list[ContinuousSymmetry]]


@dataclass(frozen=True)
class FoundSymmetries:
    """Verified and approximate symmetries of a loss."""

    proposed: tuple[ParameterSymmetry, ...]  # everything, with its status; broken ones included
    saved: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as plain values
    notes: tuple[str, ...] = ()  # what was not analysed

    @classmethod
    def of(cls, snapshot: Snapshot) -> "FoundSymmetries":
        """Those of the snapshot's loss, looked for once a run as long as the loss stays the same.

        Where a run goes on, those that were found before are only confirmed.

        Raises:
            NotApplicable: no loss is known, or parameters are complex.
        """
        objective = snapshot.objective

        def make(known: KnownSymmetries | None = None) -> FoundSymmetries:
            if any(p.is_complex() for p in snapshot.before.values()):
                raise NotApplicable("complex parameters: their symmetries are not supported")
            with objective.isolated():
                if snapshot.world.sharded:
                    parted = _parted(snapshot)
                    return cls(tuple(parted), parted.state_dict(), parted.notes)
                found = _find(snapshot, known)
            return snapshot.world.of_first(
                "symmetries", lambda: cls(tuple(found), found.state_dict(), found.notes)
            )

        def restore(saved: Any) -> FoundSymmetries:
            try:
                return make(KnownSymmetries.of(saved))
            except (TypeError, ValueError) as error:
                logger.warning(
                    "symmetries are looked for anew, as what was saved is none: %s", error
                )
            return make()

        return snapshot.shared.get("symmetries", snapshot.identity, make, restore, shelved=True)

    def state_dict(self) -> dict[str, Any]:
        """What was found, in plain values."""
        return dict(self.saved)

    def continuous(self) -> list[ContinuousSymmetry]:
        """Usable continuous symmetries and equivariances, sorted by family.

        Raises:
            NotApplicable: there are none.
        """
        usable = [
            s
            for s in self.proposed
            if s.status in ("verified", "approximate") and isinstance(s, ContinuousSymmetry)
        ]
        if not usable:
            raise NotApplicable(self._none)
        return sorted(usable, key=lambda s: s.family)

    def by_family(self) -> Families:
        """Usable continuous symmetries of the loss (no equivariances) by family.

        Raises:
            NotApplicable: there are none.
        """
        usable = [s for s in self.continuous() if not s.equivariant]
        if not usable:
            raise NotApplicable(self._none)
        return _grouped(usable)

    @property
    def _none(self) -> str:
        why = "no continuous parameter symmetry found in what the loss runs"
        return f"{why} ({'; '.join(self.notes)})" if self.notes else why

    def equivariances(self) -> Families:
        """Equivariances by family: they move the outputs too."""
        found = [s for s in self.proposed if s.status in ("verified", "approximate")]
        moving = [s for s in found if isinstance(s, ContinuousSymmetry) and s.equivariant]
        return _grouped(sorted(moving, key=lambda s: s.family))

    def discrete(self) -> dict[str, list[DiscreteSymmetry]]:
        """Verified discrete symmetries of the loss by family.

        Raises:
            NotApplicable: there are none.
        """
        found: dict[str, list[DiscreteSymmetry]] = {}
        for s in self.proposed:
            if isinstance(s, DiscreteSymmetry) and s.status == "verified":
                found.setdefault(s.family, []).append(s)
        if not found:
            raise NotApplicable("no discrete parameter symmetry found in what the loss runs")
        return found


def charges(snapshot: Snapshot) -> Charges:
    """The charges and laws of everything continuous, planned once a run; large groups sketched.

    What moves outputs and conserves nothing has neither.

    Raises:
        NotApplicable: there are none.
    """

    def make() -> Charges:
        found = FoundSymmetries.of(snapshot).continuous()
        members = [m for m in found if m.charges or not m.equivariant]
        return Charges(members, snapshot.before, sketch=True, shards=snapshot.shards)

    return snapshot.shared.get("charges", snapshot.identity, make)


def _grouped(found: list[ContinuousSymmetry]) -> Families:
    return {family: list(group) for family, group in groupby(found, key=lambda s: s.family)}


def _parted(snapshot: Snapshot) -> Found:
    """From shapes, on the first rank, and from the shards of a gradient on all."""
    from eqtoolbox.weights.search.parted import find_parted, general  # searching takes scipy

    own = snapshot.objective.single
    wide = own.to(torch.float64)
    point = general(snapshot.before, snapshot.shards, torch.float64)
    plain, layout = own.own, snapshot.shards.layout
    held = {n: p for n, p in plain.model.named_parameters() if n not in point and n in layout}
    frozen = {
        n: torch.empty(layout[n].whole, dtype=p.dtype, device="meta") for n, p in held.items()
    }
    return find_parted(
        lambda p: plain.output_and_loss({**frozen, **p}),
        point,
        replayed_gradient(wide, point),
        snapshot.shards,
        partial(snapshot.world.of_first, "what shapes show"),
        loss=wide.loss,
        outputs=lambda p: wide.share.output_and_loss(p)[0],
        everywhere=own.total,
        statistics=running(own.buffers),
    )


def _find(snapshot: Snapshot, known: KnownSymmetries | None) -> Found:
    """In float64; in the model's own type where the model insists on it."""
    own = snapshot.objective.single  # of one call: micro-batches share their structure
    try:
        own = snapshot.within(own, *WIDE)
        wide = own.to(torch.float64)
    except NoRoom:
        wide = own = snapshot.within(own, *NARROW)
    try:
        return find_symmetries(
            wide.loss,
            snapshot.before,
            run=wide.share.output_and_loss,
            dtype=wide.dtype,
            model=own.model,
            known=known,
            statistics=running(own.buffers),
            larger=snapshot.world.several,
            batch=None if snapshot.world.several else wide,
        )
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return find_symmetries(
            own.loss,
            snapshot.before,
            run=own.share.output_and_loss,
            model=own.model,
            known=known,
            statistics=running(own.buffers),
            larger=snapshot.world.several,
        )
