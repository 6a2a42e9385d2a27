"""Pending losses: those of the step that is being taken, and those of the one after it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from eqtoolbox.watch.capture.backward import Backward
from eqtoolbox.watch.capture.caught import Caught, guessed, weighted
from eqtoolbox.watch.capture.losses import Then
from eqtoolbox.watch.capture.waiting import Waiting
from eqtoolbox.watch.capture.watched import Watched

ROUNDED = 0.01  # of a ratio of gradients that is read as a whole number
MAX_WAITING = 64  # losses that no backward has reached; the oldest are let go


class Pending:
    """Sorts losses to steps, and keeps the weights that backwards give them.

    Args:
        watched: whose gradients tell when a window of accumulation begins.
    """

    def __init__(self, watched: Watched) -> None:
        self.summed = False  # losses of unknown weight: their sum, not their mean
        self.stale = False  # whether gradients were left when the first backward of the step came
        self.fresh: frozenset[str] = frozenset()  # parameters whose gradients began at this step
        self.beside = ""  # what the step differentiates beside the losses that were caught
        self.moved = False  # whether a closure evaluated the loss at other parameters
        self.coming: list[Caught] = []  # losses of the step that comes
        self._step: list[Caught] = []  # and of the one that is being taken
        self.waiting = Waiting(watched)
        self.skipped = (0, "")  # steps before the one that is being taken, and by whose gradient
        self._model, self._watched = watched.model, watched
        self._unmoved: Callable[[], bool] | None = None  # is the model still at theta_t?
        self._inside: Callable[[], bool] | None = None  # the same, while step() runs
        self._task = -1  # backward that was last seen
        self._places: set[int] = set()  # of the parameters, at losses and as the step starts

    # -- one step -------------------------------------------------------------------------------

    def step_starts(self, unmoved: Callable[[], bool]) -> None:
        """The optimizer was called: what was caught so far is this step's.

        Args:
            unmoved: whether the parameters are still those from before the step; closures
                evaluate the loss inside it.
        """
        self._step, self.coming = self.coming, []
        self._places.add(_place(self._model))
        self.skipped = self.waiting.ended()
        self.moved, self._unmoved = False, unmoved
        self._inside = unmoved

    def step_goes_on(self) -> None:
        """The next of several optimizers was called."""
        self._inside = self._unmoved

    def step_pauses(self) -> None:
        """The optimizer returned: what is caught from now on belongs to the coming step."""
        self._inside = None
        for caught in self._step:
            caught.used = True

    def drop(self) -> None:
        """Forget the step."""
        for caught in self._step:
            caught.release()
        self._step, self._inside, self._places = [], None, set()
        self.stale, self.beside, self.fresh = False, "", frozenset()

    def forget(self) -> None:
        """Forget the coming step, too."""
        self._step += self.coming
        self.coming = []
        self.drop()

    # -- losses ---------------------------------------------------------------------------------

    def add(self, caught: Caught, loss: Tensor | None = None) -> None:
        """Keep a loss for the step it belongs to; it came to `loss`."""
        self.here.append(caught)
        if self._inside is None:
            self._places.add(_place(self._model))
            self.waiting.evaluated(loss)
        waiting = [c for c in self.coming if c.weight is None]
        for old in waiting[:-MAX_WAITING]:
            self.coming.remove(old)

    def belongs(self) -> bool:
        """Whether a loss is now evaluated at the parameters that its step starts from."""
        if self._inside is not None and not self._inside():
            self.moved = True
        return not self.moved or self._inside is None

    @property
    def here(self) -> list[Caught]:
        """Losses of the step that what is evaluated now belongs to."""
        return self.coming if self._inside is None else self._step

    @property
    def last(self) -> Caught | None:
        """The loss that was caught last."""
        known = self.here or self._step
        return known[-1] if known else None

    @property
    def losses(self) -> list[Caught]:
        """Losses of the step, or of the coming one while none is taken."""
        return self._step or self.coming

    # -- weights --------------------------------------------------------------------------------

    def weighted(self, scale: float) -> list[tuple[Caught, float]]:
        """Losses with their weights in the step; `scale` of a gradient scaler divided out."""
        return weighted(self.losses, scale, self.summed)

    @property
    def counts(self) -> tuple[int, int]:
        """Losses caught for the step, and how many of them the backward reached."""
        return len(self.losses), sum(c.weight is not None for c in self.losses)

    @property
    def climbed(self) -> bool:
        """Whether the parameters moved between losses and the step, by something else."""
        return len(self._places) > 1

    @property
    def unreached(self) -> bool:
        """Whether backwards could have been seen, and none reached a loss of the step."""
        step = self.losses
        return bool(step) and all(c.weight is None and c.handle is not None for c in step)

    def learn_weights(self, ratio: float) -> bool:
        """Whether losses of unknown weight turn out to be summed.

        Args:
            ratio: of the gradient's norm to that of the mean of the losses.
        """
        unknown = guessed(self.losses) and not self.summed
        self.summed = self.summed or (unknown and abs(ratio / len(self.losses) - 1) < ROUNDED)
        return unknown and self.summed

    def reached(self, caught: Caught, gradient: Tensor) -> None:
        """A backward arrived at this loss: what arrives is the weight of the loss in the step."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            losses = (*self._step, *self.coming)
            known = [c for c in losses if c.weight is not None and not c.used]
            clear = self._watched.clear()
            self.stale = self.stale if known else not clear
            self.fresh = self.fresh if known and not clear else frozenset(self._watched.fresh())
            if known and clear:
                self.waiting.cleared()
                for earlier in known:  # their gradients were thrown away
                    earlier.weight = None
        weight = self._differentiated(caught, gradient).detach().reshape(())
        caught.weight = weight if caught.weight is None else caught.weight + weight

    def _differentiated(self, caught: Caught, gradient: Tensor) -> Tensor:
        """The weight of the loss, or of what the loop made of it and differentiates."""
        value, caught.value = caught.value, None if gradient.dim() else caught.value
        backward = Backward.now(caught.thread)
        if backward is None or caught.node is None or value is None:
            return gradient.sum()
        losses = frozenset(c.node for c in (*self._step, *self.coming) if c.node is not None)
        found = backward.found(losses, self._watched.trainable().values())
        first = caught.weight is None and (found.taken or gradient.dim() > 0)
        made = backward.made_of(found, value, gradient) if first else None
        if made is None:
            self.beside = self.beside or found.why
            return gradient.sum()
        ((root,), (seed,)) = backward.roots, backward.seeds
        loss_fn = Then(caught.objective.loss_fn, made)
        caught.objective, caught.value = replace(caught.objective, loss_fn=loss_fn), root.detach()
        return torch.ones_like(root) if seed is None else seed


def _place(model: nn.Module) -> int:
    """A number that changes when parameters do: in place, or by other memory."""
    try:
        return hash(tuple((p._version, p.data_ptr()) for p in model.parameters()))
    except (RuntimeError, NotImplementedError):  # inference tensors have no version
        return 0
