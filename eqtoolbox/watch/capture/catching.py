"""Catching: what hooks on a model and its criterion keep of a loss for the step it belongs to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eqtoolbox.replay.belongings import Belongings, used_by
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective
from eqtoolbox.replay.thread.apart import Apart
from eqtoolbox.replay.thread.scope import LeavesTrace, unobserved
from eqtoolbox.replay.tree import map_tensors
from eqtoolbox.watch.capture.backward import node_of
from eqtoolbox.watch.capture.between import Answered, Between, NotFollowed
from eqtoolbox.watch.capture.caught import Arrived, Caught, Hook, in_transform, loss_of
from eqtoolbox.watch.capture.concealed import Concealed
from eqtoolbox.watch.capture.losses import Criterion, OwnLoss
from eqtoolbox.watch.capture.own_share import OwnShare
from eqtoolbox.watch.capture.pending import Pending
from eqtoolbox.watch.capture.programs import InPlace, compiled_around, compiled_in_place
from eqtoolbox.watch.capture.reasons import IN_TRANSFORM, NOT_ON_OUTPUT
from eqtoolbox.watch.capture.start import Start, buffers_of, fresh
from eqtoolbox.watch.capture.stopwatch import Stopwatch
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.vitals.hearing import Hearing


class Catching:
    """What is known of the losses of the coming step, and the hooks that tell of them.

    Args:
        watched: the model and what else is watched.
        loss_fn: evaluated by probes, where it is known.
        criterion: called in the loop on the model's output.
        called: the module that the loop calls, where the model is wrapped.
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
        self.unanswered = False  # whether the criterion was called, and no call of the model seen
        self.replays = True  # whether the coming step is evaluated again
        self.pending = Pending(watched)
        self._share: OwnShare | None = None  # of a gradient that several processes average
        self.hearing = Hearing()  # of every loss, due or not
        self.stopwatch = Stopwatch()  # time that catching took, between the loop's own
        self.unused: Any = None  # batch of a step that is not due, for probe_now()
        self._armed = False
        self._wrapped: LossFunction | None = None
        self.fail: Callable[[BaseException], None] = _raise
        self._own_loss = False
        self._searches = 5  # for what was compiled that are left: each takes a moment
        self.followed = False  # whether the last one found it
        self._start: Start | None = None
        self._autocast: tuple[str, torch.dtype] | None = None
        self._begun: tuple[Objective, Any, list[int]] | None = None
        self._output: Any = None
        self._given: Any = None  # what the criterion is called with: of the model, and beside it
        self._made: tuple[Between | None, bool] = (None, False)  # how its arguments were last made
        self._calls: Any = ((), {})
        self._handles: list[Concealed | InPlace] = []
        self._ears: list[Concealed] = []
        if criterion is not None and loss_fn is None:
            self._hear(criterion)

    def _catch(self, objective: Objective, result: Any) -> None:
        """Keep a loss for the step it belongs to, with a note of what its backward starts with."""
        objective.random.ended()
        loss = loss_of(result)
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
                Arrived(self, caught)
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
                if compiled_in_place(module):
                    self._handles.append(InPlace(module, pre, post))
                    continue
                handles = (
                    module.register_forward_pre_hook(pre, with_kwargs=True, prepend=True),
                    module.register_forward_hook(post, with_kwargs=True),
                )
                self._handles += [Concealed(handle) for handle in handles]

    def follow(self) -> None:
        """Where no loss was caught: what the loop calls may have been compiled since `attach`."""
        self.followed, self._searches = False, self._searches - 1
        if self._wrapped is not None or self._searches < 0:
            return
        around = compiled_around(self.model) if self.called is self.model else None
        judging = None if self.criterion is None else compiled_around(self.criterion)
        plain = any(isinstance(h, Concealed) for h in self._handles)
        inside = [m for m in (self.called, self.criterion) if m is not None]
        self.followed = around is not None or judging is not None
        self.followed = self.followed or (plain and any(map(compiled_in_place, inside)))
        if not self.followed:
            return
        self._remove()
        self.called = self.called if around is None else around
        self.criterion = self.criterion if judging is None else judging
        self.deaf()
        if self.criterion is not None or self._own_loss:
            self._hear(self.called if self.criterion is None else self.criterion)
        if self._armed:
            self._install()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hear(self, module: nn.Module) -> None:
        """Hear every loss that the module gives from now on, at steps that are not due, too."""
        self._ears.append(Concealed(module.register_forward_hook(Hook(self, "_eared", module))))

    def _eared(self, module: nn.Module, args: Any, loss: Any) -> None:
        self._heard(module, args, loss)
        if torch.is_grad_enabled() and not self._armed:
            self._passed(loss)

    def _passed(self, result: Any) -> None:
        """A loss is not caught; after many without a step a cause is looked for."""
        waiting = self.pending.waiting
        waiting.losses += 1
        if waiting.losses == waiting.far:
            try:
                with Apart():
                    waiting.idle(loss_of(result))
            except Exception as error:
                self.fail(error)

    def _heard(self, module: nn.Module, args: Any, loss: Any) -> None:
        with unobserved():  # by modes of the user's
            self.hearing.heard(loss_of(loss))

    def deaf(self) -> None:
        """Hear no module any more."""
        for ear in self._ears:
            ear.remove()
        self._ears.clear()

    def _model_called(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self._begun is not None or not torch.is_grad_enabled() or not self.pending.belongs():
            return
        if in_transform():
            self.missed = IN_TRANSFORM
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
        loss = loss_of(output)
        if loss is None or not loss.requires_grad:
            self.missed = (
                f"the model returns {type(output).__name__}, not its loss: {self.decorate}, or "
                f"give criterion= (a module), or {self.observed}"
            )
            return
        if not self._own_loss:
            self._own_loss = True
            self._hear(self.called)
            self._heard(self.called, args, loss)
        self._catch(self._objective(OwnLoss(), self._calls), output)

    def _criterion_called(self, criterion: nn.Module, args: Any, kwargs: Any) -> None:
        self._given = None
        if not torch.is_grad_enabled() or in_transform():
            return
        if self._output is None:
            self.unanswered = True
            return
        why = ""
        try:
            given = map_tensors(lambda x: Between.of(self._output, x) or x, (args, kwargs))
        except NotFollowed as reason:
            why = f"after {reason}"
        else:
            if any(isinstance(leaf, Between) for leaf in tree_leaves(given)):
                _let_end(criterion)
                self._given = self._calls, fresh(given)
                self._made = _first(given)
                return
        why = f", but {why}, which cannot be done again here" if why else ""
        self.missed = NOT_ON_OUTPUT.format(why=why)

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


def _let_end(module: nn.Module) -> None:
    """Of what the module answers our hooks see what other hooks, registered later, made of it."""
    hooks: Any = module._forward_hooks
    for key in [key for key, hook in [*hooks.items()] if isinstance(hook, Hook)]:
        hooks.move_to_end(key)


def _raise(error: BaseException) -> None:
    raise error


def _first(given: Any) -> tuple[Between | None, bool]:
    """How the first argument is made of the output, and whether a second one is flat."""
    args, _ = given
    made = args[0] if args and isinstance(args[0], Between) else None
    flat = len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() == 1
    return made, flat and made is not None and bool(made.steps)
