"""The budget: which due probes run now, so that what training time pays for makes curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eqtoolbox.watch.allowed import check_allowance, check_share
from eqtoolbox.watch.plan import LIGHT, VITAL, Wish, gaps, part, room

UNSEEN = 8e-6  # seconds a step that no clock inside the monitor sees (benchmarks/surface_budget.py)
LOSS = "training"  # the loss and the learning rate, measured where nothing else is
APART = (LOSS, VITAL)  # what no probe measures
ALLOWANCE = 15.0  # seconds beside the share, so that short runs have curves, too
AT_ONCE = 0.8  # seconds that several probes may take together at one step
DEARER = 3.0  # times a light one: what a whole one may take that did not run yet
SLIGHT = 0.1  # of its cost: what costs less is never kept waiting for it
NEARLY = 0.65  # of its gap, after which a probe joins others that are measured anyway
FIRST = 10.0  # times what lighter ones took: what a first run may take, which nobody knows
SETUP = 0.8  # part of the allowance that set-up takes at most: the rest is for points


class Budget:
    """One pool of seconds for all probes, spent so that each has evenly spread measurements.

    Training earns `share` of its time, beside an allowance once; what the monitor takes comes off:
    probes, hooks of steps that are not due, with `UNSEEN` for each step, and set-up, of the
    allowance at most four fifths, so that a dear probe does not silence the light ones for good.
    Where the length of a run is not known it is planned for 400 steps, and then for twice those so
    far: in that time a probe may spend what it takes to run whenever it is due, and where that is
    too much for all, those who want more share evenly what the others leave. A run that is due
    waits until its gap to the last one is what this pays for,

        gap = steps ahead * cost / (its part of the income in these and of what is left),

    with all that is left where the end is known, else with two fifths of it. Nobody waits longer
    than a tenth of the plan, 40 steps and later a fifth of those so far; where that is too much
    for what is left, all of them wait longer by one factor: of curves the dear ones have as many
    points as others. Whole measurements where light ones would do are paid from what curves leave.
    What it waits longer, as it is not due, comes off the next gap. Whoever waited longest for its
    gap comes first; where it is not paid yet, all that cost more than a tenth of it save for it.
    First runs are never refused, as only they tell what a probe costs. Where probes would together
    hold a step up for more than 0.8 s, the others wait for the next one; a first run counts as ten
    times what those before it took. Within this time who has waited two thirds of its gap joins
    others, as what all need is paid once. A probe that can measure less for less (`lightens`) does
    so where the whole is not paid, after a first whole one; where the first was light, the whole
    counts as three of it. One whose first light measurement finds all that the next go on from
    (`light_first`) takes what the whole one does, which runs where that is paid. Vital signs are
    paid like a probe, once a loss is evaluated anyway and no search held the step up.

    Args:
        share: of training time, such as 0.05; None for no limit, so that all run when due.
        names: of the probes.
        allowance: seconds beside the share.
        lightens: those that can measure less for less.
        light_first: of these, those whose first light measurement takes what a whole one does.
        steps: where the run ends, if that is known.

    Raises:
        ValueError: as `check_share` and `check_allowance`.

    Example:
        >>> budget = Budget(0.05, ["light", "heavy"], allowance=1.0)
        >>> for step in (0, 40):
        ...     now = budget.choose(["light", "heavy"], step)
        ...     budget.spend({name: {"light": 0.01, "heavy": 10.0}[name] for name in now}, {}, 0.0)
        ...     print(now)
        ['light', 'heavy']
        ['light']
    """

    def __init__(
        self,
        share: float | None,
        names: Sequence[str],
        allowance: float = ALLOWANCE,
        lightens: Sequence[str] = (),
        light_first: Sequence[str] = (),
        steps: int | None = None,
    ) -> None:
        check_share(share)
        check_allowance(allowance)
        self.share, self.allowance, self._steps = share, allowance, steps
        self.training = 0.0  # seconds
        self.probing = 0.0  # of everything the monitor does but its set-up
        self.setup = 0.0  # of the first run of each probe
        self._first: int | None = None  # step at which something was due first
        self._last = 0  # and last
        self._light_first = {name + LIGHT: name for name in light_first}  # and the whole
        every = (*names, *(name + LIGHT for name in lightens))
        self._wishes = {name: Wish() for name in every} | {LOSS: Wish(cost=0.0), VITAL: Wish()}

    @property
    def overhead(self) -> float:
        """The monitor's time over training time so far, set-up apart."""
        return self.probing / max(self.training, 1e-9)

    @property
    def income(self) -> float:
        """Seconds that training earned."""
        return math.inf if self.share is None else self.share * self.training

    @property
    def points(self) -> dict[str, tuple[int, int]]:
        """How often each probe gave a number, light measurements included, and was due."""
        return self._of_probes({name: wish.points for name, wish in self._wishes.items()})

    @property
    def measured(self) -> bool:
        """Whether anything ran."""
        return any(wish.runs for wish in self._wishes.values())

    @property
    def allowed(self) -> float:
        """Seconds that are earned or allowed."""
        return self.allowance + self.income

    @property
    def spent(self) -> float:
        """Seconds that the monitor took, its set-up included."""
        return self.probing + self.setup

    @property
    def left(self) -> float:
        """Seconds that are earned or allowed, and not spent."""
        setup = min(self.setup, SETUP * self.allowance)
        return self.allowed - self.probing - setup

    def earn(self, seconds: float) -> None:
        """Training took `seconds`."""
        self.training += seconds

    def keep(self, seconds: float) -> None:
        """What the monitor always does took `seconds`."""
        self.probing += seconds

    def spend(self, seconds: Mapping[str, float], once: Mapping[str, float], shared: float) -> None:
        """A due step was measured.

        Args:
            seconds: that each probe took.
            once: seconds of these that no later run takes again.
            shared: seconds that all of them made necessary together.
        """
        for name, own in seconds.items():
            wish, cost = self._wishes[name], own + shared / len(seconds)
            again = cost - once.get(name, 0.0)
            if self._begun(name):
                self.probing += cost
            else:
                self.setup += cost
            if wish.cost is None:
                first, whole = own - once.get(name, 0.0), self._light_first.get(name, name)
                told = whole if self.unknown(whole) else name  # the first light one is whole
                self._wishes[told].cost = first
                if self.unknown(whole := told.removesuffix(LIGHT)):
                    self._wishes[whole].cost = DEARER * first
            else:
                wish.cost = (again + wish.cost) / 2
            wish.runs += 1
        if not seconds:
            self.keep(shared)

    def choose(self, due: Sequence[str], step: int, waiting: Sequence[str] = ()) -> list[str]:
        """Which of the due probes are to run at this step; asking changes nothing.

        Args:
            due: by their schedules, at this step.
            step: its number.
            waiting: what was chosen for the step before and had to wait, see `waits`.
        """
        if self.share is None:
            return [*dict.fromkeys((*waiting, *due))]
        lighter = [name + LIGHT for name in due if self._lightens(name)]
        whole = [name for name in due if name + LIGHT not in lighter or not self.unknown(name)]
        asked = {name: self._wishes[name] for name in (*waiting, *whole, *lighter)}
        first = [name for name, wish in asked.items() if name in waiting or wish.cost is None]
        now = [*first, *self._afforded(asked, step, first)]
        return [n for n in now if n not in lighter or n.removesuffix(LIGHT) not in now]

    def took(self, due: Sequence[str], ran: Mapping[str, bool], step: int) -> None:
        """The step is over.

        Args:
            due: what was due by its schedule.
            ran: what ran, and whether it gave a number.
            step: its number.
        """
        self._first, self._last = step if self._first is None else self._first, step
        for name in (*due, *(name + LIGHT for name in due)):
            if name in self._wishes:
                self._wishes[name].due += 1
        gap = self._gap(step)
        for name, answered in ran.items():
            self._wishes[name].points += answered
            for own in {name, name + LIGHT} & self._wishes.keys():  # the whole has the light one
                wish, apart = self._wishes[own], gap(own)
                on_time = max(wish.last + apart, step - apart / 2)  # later, where it joined others
                wish.last = step if wish.last < 0 else min(on_time, step + apart / 2)

    def answered(self, name: str) -> None:
        """A probe that ran at an earlier step gave a number after all."""
        self._wishes[name].points += 1

    def unknown(self, name: str) -> bool:
        """Whether this did not run yet, so that nobody knows what it costs."""
        return self._wishes[name].cost is None

    def _begun(self, name: str) -> bool:
        """Whether it ran before, whole or light, or takes nothing the first time."""
        whole = name.removesuffix(LIGHT)
        either = [self._wishes[n] for n in (whole, whole + LIGHT) if n in self._wishes]
        return any(wish.runs or wish.cost is not None for wish in either)

    def _lightens(self, name: str) -> bool:
        light = name + LIGHT
        return light in self._wishes and (light in self._light_first or not self.unknown(name))

    def waits(self, name: str, seconds: float, guess: float | None = None) -> bool:
        """Whether what was chosen is left for the next step, as others took `seconds` of this.

        Args:
            name: of it.
            seconds: of the others.
            guess: what a first run may take; None: ten times what they took.
        """
        first = FIRST * seconds if guess is None else guess
        cost = first if self.unknown(name) else self._wishes[name].cost or 0.0
        return self.share is not None and seconds > 0 and seconds + cost > AT_ONCE

    def _afforded(self, asked: Mapping[str, Wish], step: int, first: Sequence[str]) -> list[str]:
        """Who has waited long enough, the longest first, as far as it is paid."""
        gap = self._gap(step)
        waited = {n: (step - w.last) / gap(n) for n, w in asked.items() if n not in first}
        now, together = list[str](), sum(asked[name].cost or 0.0 for name in first)
        saved = 0.0  # for who has waited for its gap, and is too dear for what is left
        soon = (name for name, gaps in waited.items() if gaps >= NEARLY)
        for name in sorted(soon, key=lambda name: -waited[name]):
            cost = asked[name].cost or 0.0
            joins = now and together + cost <= AT_ONCE and name not in APART
            if waited[name] < 1 and not joins:
                continue
            rest = self._lighter_than(cost if waited[name] < 1 else SLIGHT * cost)
            if together + cost + rest + (saved if cost > SLIGHT * saved else 0.0) <= self.left:
                now.append(name)
                together += cost
            elif waited[name] >= 1:
                saved = max(saved, cost)
        return now

    def _lighter_than(self, cost: float) -> float:
        """Seconds of one more run of all that take less: they are not kept waiting by dear ones."""
        return sum(wish.cost for wish in self._wishes.values() if wish.cost and wish.cost < cost)

    def _gap(self, step: int) -> Callable[[str], float]:
        """How many steps apart a probe's runs are, as planned at this step."""
        begun = step if self._first is None else self._first
        return gaps(self._wishes, self.income, self.left, step, begun, self._steps)

    def told(self) -> str:
        """What was spent of what is allowed, in words."""
        spent = f"{self.spent:.3g} s spent"
        if self.share is None:
            return f"{spent}: the set-up and {self.overhead:.1%} of the training time; no budget"
        earned = f"{self.share:.1%} of {self.training:.3g} s of training"
        return f"{spent} of {self.allowed:.3g} s ({self.allowance:g} s and {earned})"

    def expected(self, times: float) -> dict[str, tuple[int, int]]:
        """What `points` would about be with so many times the budget, where as many runs answer."""
        more = (times - 1) * self.allowed + max(self.left, 0.0)
        spent = sum(wish.runs * (wish.cost or 0.0) for wish in self._wishes.values())
        each = part(self._wishes.values(), spent + more)
        most = math.inf if self._steps else room(self._last + 1)

        def bought(wish: Wish) -> int:
            runs = min(wish.due, each / max(wish.cost or 0.0, 1e-9), most)
            return max(wish.points, int(runs * wish.points / max(wish.runs, wish.points, 1)))

        return self._of_probes({name: bought(wish) for name, wish in self._wishes.items()})

    def _of_probes(self, counts: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Counts of whole and light ones together, as far as they were due, and how often that."""
        names = [n for n in self._wishes if n not in APART and not n.endswith(LIGHT)]
        due = {
            n: max(self._wishes[m].due for m in self._wishes if m in (n, n + LIGHT)) for n in names
        }
        return {n: (min(counts[n] + counts.get(n + LIGHT, 0), k), k) for n, k in due.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        seconds = {"training": self.training, "probing": self.probing, "setup": self.setup}
        wishes = {name: asdict(wish) for name, wish in self._wishes.items()}
        return {**seconds, "first": self._first, "wishes": wishes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; probes that are new start at nothing."""
        self.training, self.probing = state["training"], state["probing"]
        self.setup, self._first = state.get("setup", 0.0), state.get("first")
        known = state.get("wishes") or {n: {"cost": c} for n, c in state.get("costs", {}).items()}
        self._wishes |= {n: Wish(**w) for n, w in known.items() if n in self._wishes}
