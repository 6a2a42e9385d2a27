"""Waiting: losses are evaluated and the attached optimizer takes no step; why, if it shows."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import not_finite
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.world.layout import local

PATIENCE = 20  # losses without a step, or skipped steps in a row, after which something is wrong
FIRST = 3  # losses without a step after which gradients are looked at


class Waiting:
    """Counts losses since the last step that was seen; at a few of them it looks for a cause.

    Two causes show. Parameters move although the optimizer does not step: another one does. Or
    gradients that are not finite are thrown away: a gradient scaler skips each step.

    Args:
        watched: parameters that should move by the attached optimizers' steps only.
    """

    def __init__(self, watched: Watched) -> None:
        self.losses = 0  # evaluated since the last step
        self.thrown = 0  # times that gradients were cleared meanwhile, before a backward
        self.culprit = ""  # a parameter whose gradient was not finite meanwhile
        self.moved = False  # whether parameters moved meanwhile
        self.mark: Sequence[Tensor] = ()  # norms of the parameters at a loss before
        self.far = PATIENCE  # losses that are not caught, after which to look
        self.told = False  # that a wait is too long
        self.tell: Callable[[Waiting], None] = lambda _: None  # called once, with the cause known
        self._watched = watched

    def evaluated(self, loss: Tensor | None) -> None:
        """The loop evaluated a loss before the coming step, which is due; None if it is unknown."""
        self.losses += 1
        if self.thrown and _doubled(self.losses, FIRST):
            self._look_after(loss)
        if _doubled(self.losses, PATIENCE // 2):
            self._compare()
        self._judge()

    def idle(self, loss: Tensor | None) -> None:
        """The same at a step that is not due, where nothing is known of what became of losses.

        A window of accumulation may be that long: each time it is looked for twice as many.
        """
        self.far *= 2
        if self.mark:
            self.thrown = self.losses - 1
        self._look_after(loss)
        self._compare()
        self._judge()

    def cleared(self) -> None:
        """Gradients were cleared since the last loss, and no step was seen."""
        self.thrown += 1

    def ended(self) -> tuple[int, str]:
        """A step was seen: how many before it were skipped, and whose gradient was not finite."""
        skipped = (self.thrown, self.culprit) if self.culprit and not self.moved else (0, "")
        self.losses = self.thrown = 0
        self.moved, self.culprit, self.mark = False, "", ()
        return skipped

    def _judge(self) -> None:
        if not self.told and (self.moved or (self.culprit and self.thrown >= PATIENCE)):
            self.told = True
            self.tell(self)

    def _look_after(self, loss: Tensor | None) -> None:
        """Look at the gradients when the backward of this loss is over."""
        if loss is None:
            self.look()
        elif loss.requires_grad and not self.culprit:
            loss.register_hook(_Look(self))  # type: ignore[no-untyped-call]

    def _compare(self) -> None:
        """Whether the parameters moved since the last time, told by their norms."""
        before, self.mark = self.mark, self._lengths()
        if before and len(before) == len(self.mark):
            pairs = zip(before, self.mark, strict=True)
            changed = [bool((a != b) & ~(a.isnan() & b.isnan())) for a, b in pairs]
            self.moved = self.moved or any(changed)

    def look(self) -> None:
        """Whether a gradient is not finite; in one question to the device."""
        own = self._watched.trainable().items()
        grads = {n: local(p.grad) for n, p in own if p.grad is not None}
        name = not_finite(grads)
        self.culprit = self.culprit or name

    def _lengths(self) -> list[Tensor]:
        """Norms, without waiting for the device."""
        params = [local(p.detach()) for p in self._watched.trainable().values()]
        with torch.no_grad():
            return list(torch._foreach_norm(params))


class _Look:
    """A tensor hook: looks at the gradients when the backward that reached the loss is over."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = weakref.ref(waiting)

    def __call__(self, gradient: Tensor) -> None:
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._over)

    def _over(self) -> None:
        waiting = self._waiting()
        if waiting is not None:
            try:
                waiting.look()
            except Exception:  # the user's backward is no place to fail: the cause stays unknown
                return


def _doubled(count: int, first: int) -> bool:
    """Whether it is first, 2 first, 4 first, ..."""
    times, rest = divmod(count, first)
    return rest == 0 and times > 0 and times & (times - 1) == 0
