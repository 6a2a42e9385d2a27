"""Later: due steps that nobody waits for: launched as they end, read as the next step starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.account import Account
from eqtoolbox.watch.agenda import Agenda
from eqtoolbox.watch.budget import Budget
from eqtoolbox.watch.capture.caught import Numbers
from eqtoolbox.watch.capture.loss_capture import LossCapture
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.device import Timer, works_apart
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.memory import out_of_memory
from eqtoolbox.watch.probe import Probe
from eqtoolbox.watch.rows import answers
from eqtoolbox.watch.runner import Runner
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.step import Looked, Step
from eqtoolbox.watch.vitals.vitals import Vitals
from eqtoolbox.world.layout import local


@dataclass(frozen=True, kw_only=True, eq=False)
class Launched:
    """What is on its way to the host of one step."""

    step: int
    losses: Callable[[], list[Numbers]]
    scale: float  # of a gradient scaler
    heard: Callable[[], None]  # tells the losses of every step
    measured: "Probed | None"  # None where the loss alone is due


@dataclass(frozen=True, kw_only=True, eq=False)
class Probed:
    """What of it is for probes."""

    look: Looked
    snapshot: Snapshot  # without batches and gradients
    asked: list[tuple[Probe, Any]]
    timer: Timer


class ReadLater:
    """Measures without waiting for the device what needs no evaluation of the loss.

    At the end of such a step all passes over its tensors are launched, and one copy brings their
    numbers to the host while training goes on. They are read before the next step moves a
    parameter, by when the device has long gone past them, and recorded as that step's. The copies
    of the parameters are those that every due step uses anew: nothing more is held meanwhile.

    Args:
        watched, capture, taken: of the training.
        journal, runner, account, agenda, budget, vitals: of the monitor.
        alone: whether one process trains, by one optimizer.
        settled: whether nothing is to be found out first, given theta_t.
        freeze: makes the snapshot of a step, as `Catch.snapshot`.
    """

    def __init__(
        self,
        watched: Watched,
        capture: LossCapture,
        taken: Step,
        journal: Journal,
        runner: Runner,
        account: Account,
        agenda: Agenda,
        budget: Budget,
        vitals: Vitals,
        *,
        alone: bool,
        settled: Callable[[Parameters], bool],
        freeze: Callable[..., Snapshot],
    ) -> None:
        self._watched, self._capture, self._taken = watched, capture, taken
        self._journal, self._runner = journal, runner
        self._account, self._agenda = account, agenda
        self._budget, self._vitals = budget, vitals
        self._alone, self._settled, self._freeze = alone, settled, freeze
        self._launched: Launched | None = None

    @property
    def step(self) -> int | None:
        """The one that is still to be read, if there is one."""
        return None if self._launched is None else self._launched.step

    def launch(self, step: int) -> bool:
        """Launch what is told of the step that is over; False where that is to be waited for."""
        before, run = self._taken.before, bool(self._agenda.run)
        if not self._alone or (run and (before is None or not self._may_launch(before))):
            return False
        if not works_apart(before if run and before else self._watched.trainable()):
            return False
        try:
            return self._launch(step, before if run else None)
        except BaseException as error:
            if not out_of_memory(error):  # what measures at once has its own ways with that
                raise
            return False

    def _launch(self, step: int, before: Parameters | None) -> bool:
        parcel = Parcel()
        losses = self._capture.sent(parcel)
        if losses is None:
            return False
        measured = None if before is None else self._measured(step, before, parcel)
        if measured is None and before is not None:
            return False
        heard = self._vitals.sent(step, parcel)
        parcel.send()
        scale = self._taken.scale
        if measured is not None:
            measured.timer.stop()
        self._launched = Launched(
            step=step, losses=losses, scale=scale, heard=heard, measured=measured
        )
        return True

    def _measured(self, step: int, before: Parameters, parcel: Parcel) -> Probed | None:
        """What probes ask for, launched; None where one of them measures at once."""
        timer, named = Timer(next(iter(before.values())).device), self._watched.named()
        after = {n: local(p.detach()) for n, p in named.items() if n in before}
        look = self._taken.look(named, parcel, every=True)
        snapshot = self._freeze(step, before, after, named, together=False, waits=False)
        asked = [(probe, self._asked(probe, snapshot, parcel)) for probe in self._agenda.run]
        if any(numbers is None for _, numbers in asked):
            return None
        known = None if snapshot.gradient is None else dict[str, Any]()
        kept = replace(snapshot, gradient=known, training=None, measured=None, state={})
        return Probed(look=look, snapshot=kept, asked=asked, timer=timer)

    def _asked(self, probe: Probe, snapshot: Snapshot, parcel: Parcel) -> Any:
        try:
            return probe.ask(snapshot, self._runner.reference(probe), parcel)
        except BaseException as error:
            if out_of_memory(error):
                raise
            self._journal.failed(probe.name, error)
            return None

    def read(self) -> None:
        """Tell and measure what was launched."""
        launched, self._launched = self._launched, None
        if launched is None:
            return
        self._account.loss(self._capture.value(launched.scale, launched.losses()))
        launched.heard()
        if launched.measured is not None:
            self._read(launched.measured)

    def _read(self, launched: Probed) -> None:
        took, look = launched.timer.seconds(), launched.look
        self._watched.tell(self._journal.event)
        finite, moved = look.told().bool().tolist()
        snapshot = replace(launched.snapshot, finite=finite)
        if not self._taken.stayed(look):
            snapshot = replace(snapshot, gradient=None)
        assert snapshot.after is not None, "a step was launched"
        bad = look.not_finite if snapshot.gradient is not None else ""
        self._account.applied(moved, lambda: bad)
        for probe, numbers in launched.asked:
            seen = replace(snapshot, asked=numbers)
            if answers(probe, self._runner.run(probe, seen, False, took)):
                self._budget.answered(probe.name)
            took = 0.0

    def _may_launch(self, before: Parameters) -> bool:
        """Whether nothing has to be evaluated, looked at or decided on the host first."""
        agenda, known = self._agenda, self._runner.references
        due = not agenda.light and all(p.name in known for p in agenda.run)
        lent = self._taken.lends and not self._capture.pending.moved
        return due and not agenda.evaluates and lent and self._settled(before)
