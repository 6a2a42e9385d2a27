"""Capture: how the training loop's own losses and batches are caught, without editing the loop."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective, Parameters
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.replay.unwrap import processes, unwrapped
from eqtoolbox.replay.window import Window
from eqtoolbox.watch.capture import reasons
from eqtoolbox.watch.capture.catching import Catching
from eqtoolbox.watch.capture.caught import (
    Caught,
    Numbers,
    in_transform,
    numbers,
    reached,
    sent,
    traced,
    weighted,
)
from eqtoolbox.watch.capture.losses import (
    CriterionOfPair,
    OwnLoss,
    SpreadCall,
    as_call,
    by_position,
)
from eqtoolbox.watch.capture.own_share import OwnShare
from eqtoolbox.watch.capture.start import fresh, versions_of

F = TypeVar("F", bound=Callable[..., Any])


class LossCapture(Catching):
    """Catches loss function, batch, buffers and random state of every loss of the coming step.

    In order of precedence: a function decorated by `wrap`; `loss_fn` with `observe(batch)`;
    `criterion` called on the model's output; a model that returns its own loss.

    Args:
        watched: the model and what else is watched.
        called: the one that the loop calls, where the model is wrapped.
    """

    @property
    def armed(self) -> bool:
        """Whether losses are being caught; hooks are on the model only meanwhile."""
        return self._armed

    @armed.setter
    def armed(self, armed: bool) -> None:
        if armed != self._armed:
            self._armed = armed
            if armed and self._wrapped is None:
                self._install()
            else:
                self._remove()

    def expect_check(self) -> None:
        """The gradient of the coming step will be compared with a replayed one."""
        if self._share is None and processes() > 1:
            self._share = OwnShare(self.watched.trainable())

    def own_share(self, scale: float) -> Parameters | None:
        """This process's part of a gradient that several average; None where it is all."""
        return None if self._share is None else self._share.gradient(scale)

    @property
    def takes_batches(self) -> bool:
        """Whether a function is known that evaluates the loss on a batch."""
        return self.loss_fn is not None or self._wrapped is not None

    # -- giving ---------------------------------------------------------------------------------

    def wrap(self, function: F) -> F:
        """`function(model, batch, ...)`, whose calls with gradients enabled are caught."""

        def hear(result: Any) -> None:
            if not traced():
                try:
                    self._heard(self.model, (), result)
                except BaseException as error:
                    self.fail(error)

        @functools.wraps(function)
        def caught(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or current() is not None:
                return function(*args, **kwargs)
            if self._armed and torch.is_grad_enabled() and not traced():
                result = self._call(function, args, kwargs)
                hear(result)
                return result
            result = function(*args, **kwargs)
            hear(result)
            if torch.is_grad_enabled():
                self._passed(result)
            return result

        self._wrapped = function
        self._remove()
        self.deaf()
        return caught  # type: ignore[return-value]

    def observe(self, batch: Any, weight: float | None = None) -> None:
        """Take `batch` as one of the coming step."""
        if not self._armed:
            self.unused = batch
            return
        with self.stopwatch:
            self._observed(batch, weight)

    def _observed(self, batch: Any, weight: float | None) -> None:
        loss_fn, losses = self._wrapped or self.loss_fn, self.pending.here
        if loss_fn is None or not self.pending.belongs():
            return
        if losses and self.watched.clear():
            losses.clear()
        objective = self._objective(loss_fn, fresh(batch))
        beside = self.watched.in_reach(loss_fn, batch)
        caught = Caught(replace(objective, beside=beside), weight=weight)
        caught.started = self._start is not None
        losses.append(caught)
        if losses is self.pending.coming:
            self.pending.waiting.evaluated(None)
        self._start = None

    def begin(self, loss_fn: LossFunction, batch: Any) -> None:
        """The loop is about to evaluate `loss_fn(model, batch)` in its own code."""
        if self._armed and torch.is_grad_enabled():
            with self.stopwatch:
                self._start, self._autocast = None, self._around()
                self._begun = self._objective(loss_fn, fresh(batch)), batch, versions_of(batch)

    def end(self, loss: Tensor | None) -> None:
        """What it evaluated to."""
        if self._wrapped is None and not self._ears:
            self._heard(self.model, (), loss)
        begun, self._begun = self._begun, None
        if begun is not None:
            objective, batch, versions = begun
            with self.stopwatch:
                self._catch(replace(objective, mutates=versions != versions_of(batch)), loss)

    def drop(self) -> None:
        """Forget the step: no reference to its batches or graphs stays."""
        self.pending.drop()
        if self._share is not None:
            self._share.release()
        self._share = None
        self._start = self._output = self._given = self._begun = self.unused = None
        self._calls = ((), {})

    def forget(self) -> None:
        """Forget the coming step, too."""
        self.deaf()
        self.pending.forget()
        self.drop()

    # -- calling ------------------------------------------------------------------------------

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the decorated function and catch what it was given and what it gave."""
        objective, versions, own, named = None, [], args, kwargs
        try:
            with self.stopwatch:
                if not own:
                    own, named = by_position(function, kwargs)
                owner = self._owner(own)
                if owner is not None:
                    batch, versions = fresh((own[1:], named)), versions_of((own[1:], named))
                    self._start, self._autocast = None, self._around()
                    loss_fn = SpreadCall(function, None if owner is self.model else owner)
                    objective = self._objective(loss_fn, batch)
        except BaseException as error:
            self.fail(error)
        result = function(*args, **kwargs)
        try:
            if objective is not None:
                with self.stopwatch:
                    changed = versions != versions_of((own[1:], named))
                    self._catch(replace(objective, mutates=changed), result)
        except BaseException as error:
            self.fail(error)
        return result

    def _owner(self, args: Any) -> nn.Module | None:
        """The model, or the larger one around it, that the function was given; None if neither."""
        given: nn.Module | None = (
            unwrapped(args[0]) if args and isinstance(args[0], nn.Module) else None
        )
        if given is None:
            got = type(args[0]).__name__ if args else "no argument"
            self.missed = (
                f"monitor.loss decorates loss_fn(model, batch, ...), but the first argument "
                f"was {got}: let the function call the model itself"
            )
        elif in_transform():
            self.missed = reasons.IN_TRANSFORM
        elif given is not self.model and all(m is not self.model for m in given.modules()):
            self.missed = (
                f"the function that monitor.loss decorates was called with another "
                f"{type(given).__name__} than the one watched"
            )
        else:
            return given
        return None

    # -- taking ---------------------------------------------------------------------------------

    def training(self, scale: float | None = 1.0) -> Objective | None:
        """Objective of the step's own batches with their weights; None when none was caught.

        Args:
            scale: by which a gradient scaler had multiplied the losses; None: their weights do not
                matter and are not asked for.
        """
        if scale is None:
            parts = [(c, 1.0) for c in reached(self.pending.losses) or self.pending.losses]
        else:
            parts = self.pending.weighted(scale)
        if parts:
            return Window.of(tuple((c.objective, w) for c, w in parts))
        loss_fn = self._wrapped or self.loss_fn
        known = loss_fn is not None and self.unused is not None
        return self._objective(loss_fn, self.unused) if known else None  # type: ignore[arg-type]

    def sent(self, parcel: Parcel) -> Callable[[], list[Numbers]] | None:
        """The numbers of the step's losses, with a parcel; None where they have to be asked for."""
        return sent(self.pending.losses, parcel)

    def value(self, scale: float = 1.0, losses: list[Numbers] | None = None) -> float | None:
        """The loss that the training loop saw, with the same weights; None if it is no number.

        Args:
            scale: by which a gradient scaler had multiplied the losses.
            losses: those of the step, where they were sent.
        """
        parts: list[tuple[Caught, float]] | list[tuple[Numbers, float]]
        if losses is None:
            parts = self.pending.weighted(scale)
        else:
            parts = weighted(losses, scale, self.pending.summed)
        terms = [(w, c.value) for c, w in parts if c.value is not None and c.value.numel() == 1]
        if not terms or len(terms) < len(parts):
            return None
        values = numbers([v for _, v in terms])
        return sum(w * v for (w, _), v in zip(terms, values, strict=True))

    def on(
        self, batch: Any, random: RandomState, loss_fn: LossFunction | None = None
    ) -> Objective | None:
        """Objective on a batch of the user's choice; None while no loss function is known."""
        loss_fn = loss_fn or self._wrapped or self.loss_fn
        if loss_fn is None and self.criterion is not None:
            loss_fn = CriterionOfPair(self.criterion, *self._made)
        if loss_fn is None and self._own_loss:
            loss_fn, batch = OwnLoss(), as_call(batch)
        if loss_fn is None:
            return None
        objective = self._objective(loss_fn, batch)
        step = self.pending.losses
        last = step[-1].objective if step else objective
        beside = last.beside if step else self.watched.in_reach(loss_fn, batch)
        return replace(
            objective,
            random=random,
            buffers=last.buffers,
            belongings=last.belongings,
            flags=last.flags,
            beside=beside,
        )

    def look_ahead(self, batch: Any) -> None:
        """Before a step of which no loss was caught: find the parameters of the loss itself."""
        if not self.pending.losses:
            loss_fn = self._wrapped or self.loss_fn or self.criterion
            self.watched.in_reach(loss_fn, self.unused if batch is None else batch)

    def why_none(self) -> str:
        """Why no loss is known, and what to do."""
        if self.refused or self.missed:
            return self.refused or self.missed
        if self.followed:
            return reasons.COMPILED_SINCE
        if self.loss_fn is not None:
            return reasons.NO_BATCH
        if self.criterion is None:
            return reasons.NO_LOSS.format(how=self.decorate, observed=self.observed)
        which = reasons.UNSEEN if self.unanswered else reasons.UNCALLED
        return which.format(kind=type(self.criterion).__name__, how=self.decorate)
