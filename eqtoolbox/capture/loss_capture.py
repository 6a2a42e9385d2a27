"""Capture: how the training loop's own losses and batches are caught, without editing the loop."""

import functools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eqtoolbox.capture.backward import node_of
from eqtoolbox.capture.batch import map_tensors
from eqtoolbox.capture.between import Answered, Between, NotFollowed
from eqtoolbox.capture.caught import Caught, Hook, gradients_are_clear, traced
from eqtoolbox.capture.concealed import Concealed
from eqtoolbox.capture.losses import Criterion, CriterionOfPair, OwnLoss, Spread, as_call
from eqtoolbox.capture.own_share import OwnShare
from eqtoolbox.capture.pending import Pending
from eqtoolbox.capture.start import Start, buffers_of, fresh, versions_of
from eqtoolbox.capture.stopwatch import Stopwatch
from eqtoolbox.capture.unwrap import processes, unwrapped
from eqtoolbox.capture.watched import Watched
from eqtoolbox.capture.window import Window
from eqtoolbox.isolation import RandomState
from eqtoolbox.objective import (
    LossFunction,
    Objective,
    Parameters,
    loss_tensor,
    used_by,
)
from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.scope import LeavesTrace, current

F = TypeVar("F", bound=Callable[..., Any])


class LossCapture:
    """Catches loss function, batch, buffers and random state of every loss of the coming step.

    In order of precedence: a function decorated by `wrap`; `loss_fn` with `observe(batch)`;
    `criterion` called on the model's output; a model that returns its own loss.

    Args:
        watched: the model and what else is watched.
        called: the one that the loop calls, where the model is wrapped.
    """

    def __init__(
        self,
        watched: Watched,
        loss_fn: LossFunction | None,
        criterion: nn.Module | None,
        called: nn.Module | None = None,
    ) -> None:
        self.watched = watched
        self.model = model = watched.model
        self.called = called if called is not None else model
        self.loss_fn = loss_fn
        self.criterion = criterion
        self.inside: tuple[str, torch.dtype] | None = None  # autocast the model's forward enters
        self.refused = ""  # why the loss must not be evaluated
        self.decorate = "decorate your loss function with @monitor.loss"
        self.observed = "loss_fn= with monitor.observe(batch)"
        self.silent: frozenset[str] = frozenset()  # streams that it draws from without a word
        self.missed = ""  # why nothing could be caught although the model was called
        self.replays = True  # whether the coming step is evaluated again
        self.pending = Pending(watched)
        self._share: OwnShare | None = None  # of a gradient that several processes average
        self.stopwatch = Stopwatch()  # time that catching took, between the loop's own
        self.unused: Any = None  # batch of a step that is not due, for probe_now()
        self._armed = False
        self._wrapped: LossFunction | None = None
        self.fail: Callable[[BaseException], None] = _raise
        self._own_loss = False
        self._start: Start | None = None
        self._autocast: tuple[str, torch.dtype] | None = None
        self._begun: tuple[Objective, Any, list[int]] | None = None
        self._output: Any = None
        self._given: Any = None  # what the criterion is called with: of the model, and beside it
        self._made: tuple[Between | None, bool] = (None, False)  # how its arguments were last made
        self._calls: Any = ((), {})
        self._handles: list[Concealed] = []

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

        waiting = self.pending.waiting

        @functools.wraps(function)
        def caught(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or current() is not None:
                return function(*args, **kwargs)
            if self._armed and torch.is_grad_enabled() and not traced():
                return self._call(function, args, kwargs)
            result = function(*args, **kwargs)
            if torch.is_grad_enabled():
                waiting.losses += 1
                if waiting.losses == waiting.far:
                    self._waits(result)
            return result

        self._wrapped = function
        self._remove()
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
        if losses and gradients_are_clear(self.watched.held().values()):
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
        self.pending.forget()
        self.drop()

    # -- taking ---------------------------------------------------------------------------------

    def training(self, scale: float = 1.0) -> Objective | None:
        """Objective of the step's own batches with their weights; None when none was caught.

        Args:
            scale: by which a gradient scaler had multiplied the losses.
        """
        parts = self.pending.weighted(scale)
        if parts:
            return Window.of(tuple((c.objective, w) for c, w in parts))
        loss_fn = self._wrapped or self.loss_fn
        known = loss_fn is not None and self.unused is not None
        return self._objective(loss_fn, self.unused) if known else None  # type: ignore[arg-type]

    def value(self, scale: float = 1.0) -> float | None:
        """The loss that the training loop saw, with the same weights."""
        parts = self.pending.weighted(scale)
        terms = [(w, c.value) for c, w in parts if c.value is not None]
        return sum(w * float(v) for w, v in terms) if terms and len(terms) == len(parts) else None

    def on(self, batch: Any, random: RandomState) -> Objective | None:
        """Objective on a batch of the user's choice; None while no loss function is known."""
        loss_fn = self._wrapped or self.loss_fn
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
        if self.loss_fn is not None:
            return "no batch is known: call monitor.observe(batch) in each step or give probe_batch"
        if self.criterion is not None:
            return (
                f"the {type(self.criterion).__name__} that was given as criterion= is not called "
                "in the training step: call that very object, criterion(model(x), ...), or "
                f"{self.decorate}"
            )
        return (
            f"no loss is known: {self.decorate} (outside of torch.compile, where it is compiled), "
            f"or give criterion= (a module), or {self.observed}"
        )

    def _waits(self, result: Any) -> None:
        """Many losses were evaluated since the last step, and none of them is caught."""
        try:
            with self.stopwatch:
                self.pending.waiting.idle(_loss(result))
        except Exception as error:
            self.fail(error)

    # -- catching -------------------------------------------------------------------------------

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the decorated function and catch what it was given and what it gave."""
        objective, versions = None, []
        try:
            with self.stopwatch:
                owner = self._owner(args)
                if owner is not None:
                    batch, versions = fresh((args[1:], kwargs)), versions_of((args[1:], kwargs))
                    self._start, self._autocast = None, self._around()
                    loss_fn = Spread(function, None if owner is self.model else owner)
                    objective = self._objective(loss_fn, batch)
        except BaseException as error:
            self.fail(error)
        result = function(*args, **kwargs)
        try:
            if objective is not None:
                with self.stopwatch:
                    changed = versions != versions_of((args[1:], kwargs))
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
        elif torch._C._functorch.maybe_current_level() is not None:
            self.missed = "the loss runs inside a torch.func transform, where it cannot be caught"
        elif given is not self.model and all(m is not self.model for m in given.modules()):
            self.missed = (
                f"the function that monitor.loss decorates was called with another "
                f"{type(given).__name__} than the one watched"
            )
        else:
            return given
        return None

    def _catch(self, objective: Objective, result: Any) -> None:
        """Keep a loss for the step it belongs to, with a note of what its backward starts with."""
        objective.random.ended()
        loss = _loss(result)
        if loss is None and isinstance(result, Tensor):  # the loop may reduce it yet
            loss = result
        if not self.pending.belongs():
            return
        if loss is not None and loss.requires_grad:
            beside = self.watched.of_loss(loss, objective.loss_fn, objective.batch)
            objective = replace(objective, beside=beside)
        caught = Caught(objective, value=None if loss is None else loss.detach())
        caught.started = True
        if loss is not None and loss.requires_grad:
            caught.node = node_of(loss)
            caught.handle = loss.register_hook(  # type: ignore[no-untyped-call]
                _Reached(self, caught)
            )
        self.pending.add(caught, loss)

    def _around(self) -> tuple[str, torch.dtype] | None:
        """Device and type of the autocast in force around the loss, or inside the model."""
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        if not torch.is_autocast_enabled(device):
            return self.inside
        return device, torch.get_autocast_dtype(device)

    # -- hooks ----------------------------------------------------------------------------------

    def _install(self) -> None:
        for module, name in ((self.called, "model"), (self.criterion, "criterion")):
            if module is not None:
                pre = Hook(self, f"_{name}_called", module)
                post = Hook(self, f"_{name}_answered", module)
                handles = (
                    module.register_forward_pre_hook(pre, with_kwargs=True, prepend=True),
                    module.register_forward_hook(post, with_kwargs=True),
                )
                self._handles += [Concealed(handle) for handle in handles]

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _model_called(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self._begun is not None or not torch.is_grad_enabled() or not self.pending.belongs():
            return
        _let_end(model)
        self._start = self._now(self._known)
        self._autocast = self._around()
        if self.loss_fn is None:
            self._calls = fresh((args, kwargs))
            return
        last = self.pending.last
        if last is not None and not last.started:
            known = last.objective
            objective = self._objective(known.loss_fn, known.batch)
            last.objective = replace(objective, beside=known.beside)
            last.started, self._start = True, None

    def _model_answered(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._start is None or self.loss_fn is not None:
            return
        if self.criterion is not None:
            self._output = Answered(output)
            return
        loss = _loss(output)
        if loss is None or not loss.requires_grad:
            self.missed = (
                f"the model returns {type(output).__name__}, not its loss: {self.decorate}, or "
                f"give criterion= (a module), or {self.observed}"
            )
            return
        self._own_loss = True
        self._catch(self._objective(OwnLoss(), self._calls), output)

    def _criterion_called(self, criterion: nn.Module, args: Any, kwargs: Any) -> None:
        self._given = None
        if self._output is None or not torch.is_grad_enabled():
            return
        why = ""
        try:
            given = map_tensors(lambda x: Between.of(self._output, x) or x, (args, kwargs))
        except NotFollowed as reason:
            why = f"after {reason}, which cannot be done again here"
        else:
            if any(isinstance(leaf, Between) for leaf in tree_leaves(given)):
                _let_end(criterion)
                self._given = self._calls, fresh(given)
                self._made = _first(given)
                return
        self.missed = (
            f"the criterion was not called on the model's own output{', but ' + why if why else ''}"
            ": give the loss as a function. Ready to paste, with your own line in place of output:"
            "\n    loss_fn = monitor.loss(lambda model, x, y: criterion(output(model(x)), y))"
            "\nand call loss_fn(model, x, y) where the loop calls the criterion"
        )

    def _criterion_answered(self, criterion: nn.Module, args: Any, kwargs: Any, loss: Any) -> None:
        given, self._given = self._given, None  # the output may be given to it again
        if given is not None and isinstance(loss, Tensor):
            self._catch(self._objective(Criterion(criterion), given), loss)

    def _objective(self, loss_fn: LossFunction, batch: Any) -> Objective:
        start = self._start or self._now(*used_by(loss_fn, batch))
        return Objective(
            model=self.model,
            loss_fn=loss_fn,
            batch=batch,
            random=start.random,
            buffers=start.buffers,
            belongings=start.belongings,
            autocast=self._autocast,
            flags=tuple(m.training for m in self.model.modules()),
        )

    def _now(self, *used: Any) -> "Start":
        """What an evaluation of the loss begins from now."""
        return Start(RandomState(self.silent), buffers_of(self.model), self._belongings(used))

    def _belongings(self, used: tuple[Any, ...]) -> Belongings | None:
        if self.refused or not self.replays:
            return None
        try:
            return Belongings((self.model, *used), (self.model,))
        except LeavesTrace:  # told where it is evaluated
            return None

    @property
    def _known(self) -> Any:
        """The loss function as far as it is known before the model is called."""
        return self._wrapped or self.loss_fn or self.criterion


class _Reached:
    """A tensor hook that tells which gradient arrived at a loss; keeps neither side alive."""

    def __init__(self, capture: LossCapture, caught: Caught) -> None:
        self._capture = weakref.ref(capture)
        self._caught = weakref.ref(caught)

    def __call__(self, gradient: Tensor) -> None:
        capture, caught = self._capture(), self._caught()
        if capture is not None and caught is not None:
            try:
                with capture.stopwatch:
                    capture.pending.reached(caught, gradient)
            except BaseException as error:
                capture.fail(error)


def _let_end(module: nn.Module) -> None:
    """Of what the module answers our hooks see what other hooks, registered later, made of it."""
    hooks: Any = module._forward_hooks
    for key in [key for key, hook in [*hooks.items()] if isinstance(hook, Hook)]:
        hooks.move_to_end(key)


def _loss(result: Any) -> Tensor | None:
    try:
        return loss_tensor(result)
    except TypeError:
        return None


def _raise(error: BaseException) -> None:
    raise error


def _first(given: Any) -> tuple[Between | None, bool]:
    """How the first argument is made of the output, and whether a second one is flat."""
    args, _ = given
    made = args[0] if args and isinstance(args[0], Between) else None
    flat = len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() == 1
    return made, flat and made is not None and bool(made.steps)
