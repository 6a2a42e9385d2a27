"""The agenda of the coming step: which probes are due, which of them run, which wait."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence

from eqtoolbox.record.schedule import following
from eqtoolbox.watch.budget import FIRST, LOSS, Budget
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.plan import LIGHT, VITAL
from eqtoolbox.watch.probe import Probe, Scheduled, ours
from eqtoolbox.world.world import Retired, World

AT_MOST = 1.0  # seconds that a search may hold up a step where there is a budget
FORKED = (
    "this process was forked from the one that attached the monitor: nothing is measured here; "
    "attach in this process to watch it"
)


class Agenda:
    """What the coming step is for.

    Args:
        probes: with their schedules.
        budget: what is paid for.
        journal: which probes are disabled.
        world: whose first rank decides for all what they measure together: probes that evaluate
            the loss, and the first run of each. Others it runs by itself.
    """

    def __init__(
        self,
        probes: Sequence[Scheduled],
        budget: Budget,
        journal: Journal,
        world: World | None = None,
    ) -> None:
        self.todo: list[Probe] = []  # due at the coming step, or left over from the one before
        self.run: list[Probe] = []  # of these, what is measured
        self.later: dict[str, Probe] = {}  # and what is put off to the step after it
        self.light: set[str] = set()  # names of probes that measure less, for less
        self.loss = False  # whether the loss is told
        self.heard = False  # whether vital signs are taken
        self._hears = False  # whether they are wanted
        self.answered: set[str] = set()  # names of probes that gave a number
        self.together: set[str] = set()  # names of probes that all ranks run at the coming step
        self._begun: set[str] = set()  # and of those that they ran once
        self._world = world or World()
        self._names: list[str] = []  # of what is due by its schedule
        self._next = 0.0  # the step up to which nothing is due after the coming one
        self._probes, self._budget, self._journal = tuple(probes), budget, journal

    @property
    def catches(self) -> bool:
        """Whether the coming step is caught."""
        return bool(self.run) or self.loss

    @property
    def evaluates(self) -> bool:
        """Whether anything that runs evaluates the loss."""
        return any(probe.evaluates for probe in self.run)

    @property
    def lends(self) -> bool:
        """Whether nothing that runs keeps a gradient: our own probes do not."""
        return all(ours(p) or not p.evaluates for p in self.run)

    @property
    def seconds(self) -> float:
        """How long a search may hold up a step."""
        return math.inf if self._budget.share is None else AT_MOST

    @property
    def left_out(self) -> list[Probe]:
        """What is due and runs neither now nor at the next step."""
        return [p for p in self.todo if p not in (*self.run, *self.later.values())]

    def plan(self, step: int) -> None:
        """Look up what is due at this step, and choose what of it is paid for."""
        if "monitor" in self._journal.disabled:
            self._world.retire("stopped its monitor, which failed")
        shared = self._shared(step)
        if self._world.first:
            self._choose(step)
        try:
            self._agree(step, shared)
        except Retired:
            self.part(step)

    def _choose(self, step: int) -> None:
        due, disabled = self._due(step), self._journal.disabled
        waiting = {} if "monitor" in disabled else self.later
        self.todo = [*dict.fromkeys((*due.values(), *waiting.values()))]
        self.run, self.later, self.light, self.loss = [], {}, set(), False
        self.answered, self._names, self._hears, self.heard = set(), [*due], False, False
        if self.todo:
            self._names.append(LOSS)
            if self._budget.unknown(VITAL) or any(p.evaluates for p in self.todo):
                self._names.append(VITAL)
            now = self._budget.choose(self._names, step, [*waiting])
            self.light = {name.removesuffix(LIGHT) for name in now if name.endswith(LIGHT)}
            self.run = [p for p in self.todo if p.name in now or p.name in self.light]
            self.loss, self._hears = LOSS in now, VITAL in now

    def _shared(self, step: int) -> dict[str, Probe]:
        """What all ranks measure together if the first one wants it: the same on each of them."""
        if not self._world.several or self._world.retired or self._journal.elsewhere:
            return {}
        due = [s.probe for s in self._probes if _due_at(s, step)]
        due += self.later.values()
        whole = not self._world.sharded
        return {p.name: p for p in due if p.evaluates or not whole or p.name not in self._begun}

    def _agree(self, step: int, shared: Mapping[str, Probe]) -> None:
        """What the first rank chose, for all of them."""
        marks = [self._mark(name, self.run, self.light) for name in shared]
        marks += [self._mark(name, self.later.values(), _lights(self.later)) for name in shared]
        told = self._world.decided(f"plan at step {step}", marks)
        now = dict(zip(shared, told, strict=False))
        if not self._world.first:
            self.run = [p for n, p in shared.items() if now[n]]
            self.light = {n for n in shared if now[n] == 2}
            after = dict(zip(shared, told[len(shared) :], strict=True))
            self.later = {n + LIGHT * (m == 2): shared[n] for n, m in after.items() if m}
            self.todo, self.loss = [*shared.values()], False
        self.together = {n for n, mark in now.items() if mark}
        self._begun |= self.together
        whens = (when for s in self._probes for when in (s.schedule, s.light) if when is not None)
        self._next = min((following(when, step + 1) for when in whens), default=math.inf)

    def _mark(self, name: str, probes: Iterable[Probe], light: Container[str]) -> float:
        """Whether a probe is among these: 1 for whole, 2 for light, 0 for neither."""
        return (2.0 if name in light else 1.0) if any(p.name == name for p in probes) else 0.0

    def in_order(self, begun: Container[str]) -> list[Probe | None]:
        """What is measured: those that evaluate, the light first, tell what the others read.

        Where there is a budget all wait for the search of what keeps what the run begins with.
        None stands where vital signs have their turn.

        Args:
            begun: names of the probes that have their reference.
        """
        bounded = self._budget.share is not None
        searches = [p for p in self.run if bounded and not p.evaluates and p.name not in begun]
        others = [p for p in self.run if p not in searches]
        others.sort(key=lambda probe: (not probe.evaluates, probe.graphs))
        return [*searches, None, *others]

    def waits(self, probe: Probe, seconds: Mapping[str, float]) -> bool:
        """Whether a probe is put off to the next step, as others took `seconds` of this one.

        Those that call no model are not: they keep what the run begins with.
        """
        if not probe.evaluates:
            return False
        every = sum(seconds.values())
        probed = every - seconds.get(VITAL, 0.0)  # whose time tells nothing of a probe's
        waits = self._budget.waits(self._paid(probe), every, FIRST * probed)
        if probe.name in self.together:
            waits = bool(self._world.decided(f"wait of {probe.name}", [float(waits)])[0])
        if waits:
            self.run.remove(probe)
            self.later[self._paid(probe)] = probe
            return True
        return False

    def lightens(self, probe: Probe, checking: float) -> bool:
        """Whether a probe measures less now; the first time, too, if the whole would be cut short.

        Args:
            probe: that runs now.
            checking: seconds that a replayed gradient took.
        """
        name = probe.name
        if probe.whole and name not in self.light:
            short = self._budget.unknown(name) and probe.whole * checking > self.seconds
            if name in self.together:
                short = bool(self._world.decided(f"first of {name}", [float(short)])[0])
            if short:
                self.light.add(name)
        return name in self.light

    def hears(self, seconds: Mapping[str, float], guess: float) -> bool:
        """Whether vital signs are taken now, as probes took `seconds` of this step.

        Args:
            seconds: of each.
            guess: what they may take the first time.
        """
        self.heard = self._hears and not self._budget.waits(VITAL, sum(seconds.values()), guess)
        return self.heard

    def part(self, step: int) -> None:
        """The ranks go their own ways: nothing is measured any more, at the coming step either."""
        self.run, self.todo, self.later, self.loss = [], [], {}, False
        self.together = set()
        if "monitor" not in self._journal.disabled:
            said = f"nothing is measured from step {step} on; training goes on"
            self._journal.retire(f"{self._world.retired}: {said}")

    def over(self, step: int) -> None:
        """The step is over."""
        if self.todo:
            ran = {self._paid(probe): probe.name in self.answered for probe in self.run}
            told = {LOSS: self.loss, VITAL: self.heard}
            ran |= {name: True for name, was in told.items() if was}
            self._budget.took(self._names, ran, step)

    def paid(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Seconds by probe as the budget counts them: light measurements apart."""
        return {n + LIGHT if n in self.light else n: s for n, s in seconds.items()}

    def _paid(self, probe: Probe) -> str:
        return probe.name + LIGHT if probe.name in self.light else probe.name

    def ends_at(self, step: int) -> bool:
        """Whether the end of this step is of interest: it is due, or the next one may be."""
        return bool(self.todo) or step + 1 >= self._next

    def catches_after(self, step: int) -> bool:
        """Whether something may be caught at this step, which follows the coming one."""
        return bool(self._due(step))

    def _due(self, step: int) -> dict[str, Probe]:
        """What is due, by its name as the budget knows it."""
        disabled = self._journal.disabled
        if "monitor" in disabled:
            return {}
        if self._journal.elsewhere:
            self._journal.disable("monitor", FORKED)
            return {}
        due = {}
        for scheduled in self._probes:
            name = scheduled.probe.name
            try:
                if scheduled.schedule(step) and name not in disabled:
                    due[name] = scheduled.probe
                elif scheduled.light and scheduled.light(step) and name not in disabled:
                    due[name + LIGHT] = scheduled.probe
            except BaseException as error:
                if name not in disabled:
                    self._journal.failed(name, error)
        return due


def _due_at(scheduled: Scheduled, step: int) -> bool:
    """Whether a probe is due, whole or light; not where its schedule fails."""
    try:
        return bool(scheduled.schedule(step) or (scheduled.light and scheduled.light(step)))
    except Exception:
        return False


def _lights(names: Iterable[str]) -> set[str]:
    return {name.removesuffix(LIGHT) for name in names if name.endswith(LIGHT)}
