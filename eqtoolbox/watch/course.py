"""A course: the optimizer steps of one training, and at each what is due, caught and measured."""

import time
from typing import Any

from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Natural
from eqtoolbox.replay.eager import eager, recorded, untraced
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.watch.due_steps import DueSteps
from eqtoolbox.watch.nested import nested
from eqtoolbox.watch.step import closure_of, look_first

RECORDED = (
    "a step was recorded as a CUDA graph, whose replays call no hooks: steps are seen only while "
    "they run as Python; measure from time to time by monitor.probe_now()"
)


class Course(DueSteps):
    """What happens as optimizers step.

    Each call of `optimizer.step()` is one step; of several optimizers, one step is over when each
    has stepped once, or one of them steps again. A due one is caught while it is taken and
    measured when it is over.
    """

    def _watch(self) -> None:
        self._first = self.step
        self._open = False  # whether a step of several optimizers is being taken
        self._stepped: set[int] = set()  # optimizers that took the step that is being taken
        ends = self._one_ends if self._several else self._step_ends
        self._handles = [o.register_step_post_hook(ends) for o in self.optimizers]
        self._starts: list[Any] = []  # hooks that only steps which are caught have
        self._arm()

    @property
    def attached(self) -> bool:
        """Whether it watches: not any more once it is detached or closed."""
        return bool(self._handles)

    @property
    def abandoned(self) -> bool:
        """Whether it watches on, in the process that attached it, and no other rank does."""
        return self.attached and not self._journal.elsewhere and not self._world.several

    def count_from(self, step: int) -> None:
        """Give the coming optimizer step this number, where the training loop counts itself."""
        step = fitted("step", step, Natural)
        if step != self.step:
            self._settle()
            self._first += step - self.step
            self.step = step
            self._arm()

    def _arm(self) -> None:
        """Find out what is due at the coming step, and what of it is paid for."""
        self._journal.step = self.step
        if self._clock.running:
            self._clock.earn()
        self._agenda.plan(self.step)
        self._capture.replays = (
            self._several or not self._catch.faithful.checked or self._agenda.evaluates
        )
        if self._agenda.catches or self._capture.armed:
            self._capture.armed = self._agenda.catches
        if self._agenda.catches and self._capture.replays:
            self._capture.expect_check()
        if self._handles:
            waits = self._later.step is not None
            self._watch_starts(self._agenda.catches or self._several or waits)

    def _watch_starts(self, wanted: bool) -> None:
        """Have hooks that the optimizers call before they step, or have none."""
        if wanted and not self._starts:
            hook = self._one_starts if self._several else self._step_starts
            self._starts = [o.register_step_pre_hook(hook) for o in self.optimizers]
            look_first(self.optimizers)
        elif self._starts and not wanted:
            for handle in self._starts:
                handle.remove()
            self._starts = []

    @eager
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if current() is not None or recorded() or nested(optimizer):
            return None
        self._settle()
        if not self._agenda.catches:
            return None
        self._begin(closure=callable(closure_of(args, kwargs)))
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @untraced
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None or (optimizer is not None and nested(optimizer)):
            return  # a loss that is evaluated again steps an optimizer itself
        if self._recorded():
            return
        started = time.perf_counter()
        if self._agenda.ends_at(self.step) or (self._starts and not self._several):
            self._due_step_ends(started)
            return
        self._clock.begin(started)
        self._capture.unused = None
        self._waiting.losses, self._waiting.mark = 0, ()
        self.step = self._journal.step = self.step + 1
        self._clock.idle(started)

    @eager
    def _due_step_ends(self, started: float) -> None:
        """A step ends that was due, or follows a due one, or that one which may be due follows."""
        caught = self._agenda.catches
        with self._gate:
            try:
                if caught:
                    self._finish()
                elif self._agenda.todo:
                    self._safely(self._account.skip, self._agenda.left_out)
                    self._journal.flush()
                self._clock.begin(started)
            finally:  # an interrupt passes, and the next step is counted right
                self._gate.holding = True
                self._capture.unused = None
                self._waiting.losses, self._waiting.mark = 0, ()
                self._agenda.over(self.step)
                self.step += 1
                self._arm()
        if not caught:
            self._clock.idle(started)

    @eager
    def _one_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """One of several optimizers starts."""
        if current() is not None or recorded() or nested(optimizer):
            return None
        if self._open and id(optimizer) in self._stepped:
            self._close_step()
        if not self._open:
            self._open = True
            if self._agenda.catches:
                self._begin(closure=True)
            elif self._capture.armed:
                self._capture.pending.step_starts(self._taken.unmoved)
            self._capture.armed = self._agenda.catches or self._agenda.catches_after(self.step + 1)
        self._capture.pending.step_goes_on()
        return self._taken.asked(optimizer, args, kwargs, self._inside)

    @eager
    def _one_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is not None or self._recorded() or nested(optimizer):
            return
        self._capture.pending.step_pauses()
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self.optimizers):
            self._close_step()

    def _close_step(self) -> None:
        self._taken.partial = len(self._stepped) < len(self.optimizers)
        self._open = False
        self._stepped.clear()
        if not self._agenda.catches:
            self._capture.drop()
        self._step_ends(None, (), {})

    def _recorded(self) -> bool:
        """Whether the step that ends is being recorded as a CUDA graph; said once."""
        if recorded():
            self._journal.warn("monitor", RECORDED)
            return True
        return False
