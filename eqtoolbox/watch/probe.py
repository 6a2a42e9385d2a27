"""A probe: something that measures a snapshot and yields numbers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from numpy.typing import NDArray

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.words import shown
from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.record.record import Mode, Product, Record, Status, Verdict
from eqtoolbox.record.schedule import Schedule
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.shared import Shared
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.state import State

UNMEASURED = "unmeasured"  # quantity of a claim that was due and got no number; warned of at once


@dataclass(frozen=True)
class Measurement:
    """One number of a probe; becomes a `Record` with the step and the cost filled in.

    The numbers that it summarises, one a unit, can go along as its `vector`: sinks with an array
    store keep them whole.
    """

    quantity: str
    value: float
    target: str = ""  # what it is about: a symmetry, a family, a rank
    stderr: float | None = None
    floor: float | None = None
    unit: str = "1"
    status: Status = "ok"
    verdict: Verdict | None = None
    matvecs: int | None = None
    note: str = ""  # for people; no program reads it
    vector: NDArray[Any] | None = field(default=None, repr=False)  # what the value summarises
    facts: Mapping[str, Any] = NO_FACTS  # what findings and charts need beside the value: `Facts`

    def __post_init__(self) -> None:
        """Numbers may come as tensors of one element; anything else raises here, by its name."""
        for name in ("value", "stderr", "floor"):
            number = getattr(self, name)
            if number is not None and type(number) is not float:
                object.__setattr__(self, name, _number(name, number))
        for name in ("quantity", "target", "unit", "note"):
            if type(getattr(self, name)) is not str:
                fitted(name, getattr(self, name), str)
        if self.status != "ok":
            fitted("status", self.status, Status)
        if self.verdict is not None:
            fitted("verdict", self.verdict, Verdict)
        if self.matvecs is not None:
            fitted("matvecs", self.matvecs, int)
        if type(self.facts) is not Facts:
            object.__setattr__(self, "facts", Facts(self.facts))


def _number(name: str, given: Any) -> float:
    """A number of a measurement, which may be NaN, or be held by an array of one element."""
    try:
        if not isinstance(given, str | bytes):
            return float(given)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name} must be one number, got {shown(given)}")


class Probe(ABC):
    """Measures one aspect of a step. Options are the fields of a frozen dataclass.

    Probes are pure: they see a snapshot, never the live model, and draw only from `rng`. Findings
    and charts of its records are a `topic`: `topics(monitor.probes)` has those of a run.

    Example:
        >>> from eqtoolbox.record.record import Mode
        >>> @dataclass(frozen=True, kw_only=True)
        ... class UpdateNorm(Probe):
        ...     name: ClassVar[str] = "update"
        ...     headline: ClassVar[str] = "norm"
        ...     mode: ClassVar[Mode] = "train"
        ...     power: float = 2.0
        ...
        ...     def measure(self, snapshot, reference, rng):
        ...         norms = [float(u.norm(self.power)) for u in snapshot.update.values()]
        ...         yield Measurement("norm", sum(n**self.power for n in norms) ** (1 / self.power))
        >>> UpdateNorm(power=1.0)
        UpdateNorm(power=1.0)
    """

    name: ClassVar[str]  # first word of its records
    headline: ClassVar[str]  # the quantity that carries the status when nothing was measured
    mode: ClassVar[Mode]
    sharded: ClassVar[bool] = False  # whether it measures pieces of parameters, too
    evaluates: ClassVar[bool] = True  # False: `measure` calls no model and keeps no tensor
    lightens: ClassVar[bool] = False  # True: measures less, for less, where `snapshot.light`
    light_first: ClassVar[bool] = False  # True: the first light one finds what the next go on from
    whole: ClassVar[float] = 0.0  # replayed gradients' time of the first whole one; 0: not known
    on_any_part: ClassVar[bool] = False  # True: it is true of any samples of a batch, as laws are
    graphs: ClassVar[float] = 3.0  # memory at most, in what autograd saves for one gradient,
    copies: ClassVar[float] = 6.0  # and beside that in copies of the parameters
    state: ClassVar[type[State] | None] = None  # class of the reference, where it is one
    topic: ClassVar[Any] = None  # findings and charts of its records: a topic of the report

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> Any:
        """What later measurements compare with, made at the first due step and checkpointed.

        A `State`, which `measure` may update, or tensors and plain containers; the probe's `state`
        without anything in it unless this is overridden.
        """
        return None if self.state is None else self.state()

    def restored(self, saved: Any) -> Any:
        """The reference that a checkpoint has: its `state_dict()`, or itself where it has none."""
        if self.state is None or isinstance(saved, self.state):
            return saved
        made = self.state()
        if saved is not None:
            made.load_state_dict(saved)
        return made

    def ask(self, snapshot: Snapshot, reference: Any, parcel: Parcel) -> Any:
        """Launch all that `measure` takes of the step's tensors, and wait for none of it.

        For probes that do not evaluate. On a GPU `measure` is then called as the next step starts,
        with what is returned as `snapshot.asked`, and reads what has arrived on the host by then;
        of the snapshot's gradient nothing is left. None: it measures at once.

        Args:
            snapshot: of the step that is over; its gradient may yet turn out to be changed.
            reference: as `measure` gets it.
            parcel: takes the numbers to the host.
        """
        return None

    def leaner(self) -> "Probe | None":
        """The same for less memory, where there is no room for this; None: it takes no less."""
        return None

    def instead(self) -> "Probe | None":
        """What says something alike where there is no room for this at all; None: nothing does."""
        return None

    def acted(  # noqa: B027
        self, before: Parameters, after: Parameters, reference: Any, shared: Shared
    ) -> None:
        """Take note that somebody moved parameters between two steps, from `before` to `after`."""

    @abstractmethod
    def measure(
        self, snapshot: Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterable[Measurement]:
        """Yield the numbers of one step."""


def undeclared(kind: "type[Probe] | Probe") -> str:
    """What a probe or its class does not say of itself; empty if it says all.

    Example:
        >>> undeclared(Probe)
        'expected name: ClassVar[str] = "..." in the class, got None'
    """
    for name in ("name", "headline"):
        said = getattr(kind, name, None)
        if not isinstance(said, str) or not said:
            return f'expected {name}: ClassVar[str] = "..." in the class, got {said!r}'
    mode = getattr(kind, "mode", None)
    if mode not in get_args(Mode):
        return f"expected mode: ClassVar to be one of {get_args(Mode)} in the class, got {mode!r}"
    return ""


@checked
@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """A probe, the steps it is due at, and those between at which it measures less, for less."""

    probe: Probe
    schedule: Schedule
    light: Schedule | None = None  # of probes that lighten

    def __post_init__(self) -> None:
        if lacks := undeclared(self.probe):
            raise TypeError(f"{type(self.probe).__name__} is no whole probe: {lacks}")
        if self.light is not None and not self.probe.lightens:
            raise ValueError(f"{self.probe.name} has no light measurement; leave light out")


def topics(probes: Iterable[Scheduled]) -> tuple[Any, ...]:
    """The topics that probes bring, each once; the report has them after its own.

    Example:
        >>> topics([])
        ()
    """
    found = (scheduled.probe.topic for scheduled in probes)
    return tuple(dict.fromkeys(topic for topic in found if topic is not None))


def record(
    measurement: Measurement,
    probe: Probe,
    seconds: float | None = None,
    *,
    step: int = 0,
    segment: int = 0,
    hessian: Product | None = None,
) -> Record:
    """The record of a measurement; step and segment are the journal's."""
    m = measurement
    return Record(
        step=step,
        name="/".join(part for part in (probe.name, m.quantity, m.target) if part),
        value=m.value,
        stderr=m.stderr,
        floor=m.floor,
        unit=m.unit,
        status=m.status,
        verdict=m.verdict,
        mode=probe.mode,
        seconds=seconds,
        matvecs=m.matvecs,
        note=m.note,
        facts=m.facts,  # type: ignore[arg-type]  # Facts, since it was made
        segment=segment,
        hessian=hessian,
    )


def ours(probe: Probe) -> bool:
    """Whether it is one of this library's, which draw from their generators alone."""
    return type(probe).__module__.startswith("eqtoolbox.")
