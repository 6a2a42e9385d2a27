"""Tracking: the sharpness at many steps for two or three Hessian products each."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.tracker import Tracker
from eqtoolbox.probes.critical import CriticalSharpness
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.state import State

BESIDE = 6.0  # copies of the parameters beside the rows: leaves, gradient, product, what is next


@dataclass(kw_only=True, eq=False)
class Tracked(State):
    """The tracker as the last measured step left it."""

    large: ClassVar[bool] = True

    tracker: dict[str, Any] = field(default_factory=dict)  # its own state; empty: at no step yet


@checked
@dataclass(frozen=True, kw_only=True)
class Tracking(Probe):
    """The largest Hessian eigenvalue, warm-started from the last measured step's eigenvector.

    Give `probe_batch=` to `attach`: on one fixed batch and at a slow pace 3 or 4 products reach
    1 %, where the sharpness moves by 5 % a step or more, as on fresh batches, 8 to 12. `stderr` is
    the tracker's bound, which 99.5 % of the values and more keep (`Tracker` says how, and
    `benchmarks/tracking_bound.py` how often); a value whose bound is above `rtol` is
    `not_converged`.

    Args:
        rtol: relative error to reach.
        max_matvecs: Hessian products in one step.
        deep_every: measured steps between looks for other eigenvalues.
        rows: vectors of the model's size in memory at most, at least 3; 0 sets no limit.
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    Example:
        >>> Tracking(rtol=0.05).headline
        'sharpness'
    """

    name: ClassVar[str] = "tracking"
    headline: ClassVar[str] = "sharpness"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 4.0
    copies: ClassVar[float] = 18.0
    state: ClassVar[type[State]] = Tracked

    rtol: float = 0.01
    max_matvecs: int = 8
    deep_every: int = 20
    rows: int = 0
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "copies", self._tracker().rows + BESIDE)

    def instead(self) -> CriticalSharpness:
        """By forwards alone."""
        return CriticalSharpness()

    def _tracker(self) -> Tracker:
        return Tracker(
            rtol=self.rtol,
            max_matvecs=self.max_matvecs,
            deep_every=self.deep_every,
            deep_matvecs=max(12, self.max_matvecs),
            rows=self.rows or None,
        )

    def measure(
        self, snapshot: Snapshot, reference: Tracked, rng: torch.Generator
    ) -> Iterator[Measurement]:
        yield from self.engine.report(snapshot)
        tracker = self._tracker()
        if reference.tracker:
            tracker.load_state_dict(reference.tracker)
        found = tracker.update(self.engine.operator(snapshot))
        reference.tracker = tracker.state_dict()
        yield Measurement(
            "sharpness",
            found.value,
            stderr=found.bound,
            status="ok" if found.status == "ok" else "not_converged",
            matvecs=found.matvecs,
            note="looked for other eigenvalues" if found.deep else "",
        )
