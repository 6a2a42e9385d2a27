"""Capture: how the training loop's own loss and batch are caught, without editing the loop."""

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from eqtoolbox.isolation import RandomState
from eqtoolbox.objective import LossFunction, Objective, Parameters, scalar_loss

F = TypeVar("F", bound=Callable[..., Any])


class Hook:
    """A hook that does not keep its owner alive and that copies and pickles as an inert one."""

    def __init__(self, owner: Any = None, method: str = "") -> None:
        self._owner = weakref.ref(owner) if owner is not None else lambda: None
        self._method = method

    def __call__(self, *args: Any) -> None:
        owner = self._owner()
        if owner is not None:
            getattr(owner, self._method)(*args)

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook()

    def __reduce__(self) -> Any:
        return Hook, ()


class LossCapture:
    """Catches loss function, batch, buffers and random state of the step being trained.

    In order of precedence: a function decorated by `wrap`; `loss_fn` with `observe(batch)`;
    `criterion` called on the model's output; a model that returns its own loss.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, criterion: nn.Module | None
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.criterion = criterion
        self.armed = False
        self.inside: tuple[str, torch.dtype] | None = None  # autocast the model's forward enters
        self.stepping = False
        self.value: Tensor | None = None  # the loss the training loop saw
        self.evaluations = 0  # losses caught since `evaluations` was last set to 0
        self.missed = ""  # why nothing could be caught although the model was called
        self._wrapped: LossFunction | None = None
        self._begun: Objective | None = None
        self._caught: Objective | None = None
        self._start: tuple[RandomState, Parameters] | None = None
        self._autocast: tuple[str, torch.dtype] | None = None
        self._batch: Any = None
        self._output: Any = None
        self._calls: tuple[Any, Any] = ((), {})
        self._handles: list[Any] = []

    # -- giving ---------------------------------------------------------------------------------

    def wrap(self, function: F) -> F:
        """`function(model, batch, ...)`, whose calls with gradients enabled are caught."""

        @functools.wraps(function)
        def caught(*args: Any, **kwargs: Any) -> Any:
            if not (self.armed and torch.is_grad_enabled()):
                return function(*args, **kwargs)
            if not args or not isinstance(args[0], nn.Module):
                got = type(args[0]).__name__ if args else "no argument"
                self.missed = (
                    f"monitor.loss decorates loss_fn(model, batch, ...), but the first argument "
                    f"was {got}: let the function call the model itself"
                )
                return function(*args, **kwargs)
            batch = _fresh((args[1:], kwargs))
            self._autocast = _active_autocast(self.model) or self.inside
            objective = self._objective(_Spread(function), batch)
            result = function(*args, **kwargs)
            self._catch(objective, _seen(result))
            return result

        self._wrapped = function
        return caught  # type: ignore[return-value]

    def observe(self, batch: Any) -> None:
        """Take `batch` as the one of the coming step."""
        if self._wrapped is not None or self.loss_fn is not None:
            self._batch = _fresh(batch)

    def begin(self, loss_fn: LossFunction, batch: Any) -> None:
        """The loop is about to evaluate `loss_fn(model, batch)` in its own code."""
        if self.armed and torch.is_grad_enabled():
            self._start, self._autocast = None, _active_autocast(self.model) or self.inside
            self._begun = self._objective(loss_fn, _fresh(batch))

    def end(self, loss: Tensor | None) -> None:
        """What it evaluated to."""
        if self._begun is not None:
            self._catch(self._begun, _seen(loss))
            self._begun = None

    def install(self) -> None:
        """Hook the model's and the criterion's calls."""
        add = self._handles.append
        pre, post = Hook(self, "_model_called"), Hook(self, "_model_answered")
        add(self.model.register_forward_pre_hook(pre, with_kwargs=True))
        add(self.model.register_forward_hook(post, with_kwargs=True))
        if self.criterion is not None:
            pre, post = Hook(self, "_criterion_called"), Hook(self, "_criterion_answered")
            add(self.criterion.register_forward_pre_hook(pre, with_kwargs=True))
            add(self.criterion.register_forward_hook(post, with_kwargs=True))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # -- taking ---------------------------------------------------------------------------------

    def training(self) -> Objective | None:
        """Objective of the step's own batch; None when none was caught."""
        loss_fn = self._wrapped or self.loss_fn
        if self._caught is None and loss_fn is not None and self._batch is not None:
            return self._objective(loss_fn, self._batch)
        return self._caught

    def on(self, batch: Any, random: RandomState) -> Objective | None:
        """Objective on a batch of the user's choice; None while no loss function is known."""
        loss_fn = self._wrapped or self.loss_fn
        if loss_fn is None and self.criterion is not None:
            loss_fn = _CriterionOfPair(self.criterion)
        if loss_fn is None and isinstance(getattr(self._caught, "loss_fn", None), _OwnLoss):
            loss_fn, batch = _OwnLoss(), _as_call(batch)
        if loss_fn is None:
            return None
        objective = self._objective(loss_fn, batch)
        return replace(objective, random=random)

    def why_none(self) -> str:
        """Why no loss is known, and what to do."""
        if self.missed:
            return self.missed
        if self.loss_fn is not None:
            return "no batch is known: call monitor.observe(batch) in each step or give probe_batch"
        return (
            "no loss is known: decorate your loss function with @monitor.loss, or give "
            "criterion= (a module), or loss_fn= with monitor.observe(batch)"
        )

    def drop(self) -> None:
        """Forget the step: no reference to its batch or graph stays."""
        self._caught = self.value = self._start = self._batch = self._output = None
        self._begun = None
        self._calls = ((), {})

    # -- hooks ----------------------------------------------------------------------------------

    def _model_called(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        known = self._wrapped is not None or self._begun is not None
        if self.armed and not known and torch.is_grad_enabled():
            self._start = (RandomState(), _buffers(model))
            self._autocast = _active_autocast(self.model) or self.inside
            self._calls = _fresh((args, kwargs))

    def _model_answered(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._start is None or self._wrapped is not None or self.loss_fn is not None:
            return
        if self.criterion is not None:
            self._output = output
            return
        try:
            loss = scalar_loss(output)
        except TypeError:
            loss = None
        if loss is None or not loss.requires_grad:
            self.missed = (
                f"the model returns {type(output).__name__}, not its loss: decorate your loss "
                "function with @monitor.loss, or give criterion= or loss_fn="
            )
            return
        self._catch(self._objective(_OwnLoss(), self._calls), loss.detach())

    def _criterion_called(self, criterion: nn.Module, args: Any, kwargs: Any) -> None:
        if self._output is None or not torch.is_grad_enabled():
            return
        if not args or args[0] is not self._output:
            self.missed = (
                "the criterion was not called on the model's own output as criterion(model(x), "
                "...): decorate your loss function with @monitor.loss instead"
            )
            return
        self._batch = (self._calls, _fresh((args[1:], kwargs)))

    def _criterion_answered(self, criterion: nn.Module, args: Any, kwargs: Any, loss: Any) -> None:
        batch, self._output = self._batch, None
        if batch is not None and isinstance(loss, Tensor):
            self._catch(self._objective(_Criterion(criterion), batch), loss.detach())
            self._batch = None

    def _catch(self, objective: Objective, value: Tensor | None) -> None:
        """Keep the last loss before the step, or the first inside it (a closure's, at theta_t)."""
        self.evaluations += 1
        if not (self.stepping and self.evaluations > 1):
            self._caught, self.value = objective, value

    def _objective(self, loss_fn: LossFunction, batch: Any) -> Objective:
        random, buffers = self._start or (RandomState(), _buffers(self.model))
        modules = (self.criterion,) if self.criterion is not None else ()
        return Objective(
            model=self.model,
            loss_fn=loss_fn,
            batch=batch,
            random=random,
            buffers=buffers,
            modules=modules,
            autocast=self._autocast,
        )


class _Spread:
    """loss_fn(model, (args, kwargs)) for a decorated function of more than one argument."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        args, kwargs = batch
        return self.function(model, *args, **kwargs)


class _OwnLoss:
    """The loss that the model returns itself."""

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        args, kwargs = batch
        return model(*args, **kwargs)


class _Criterion:
    """criterion(model(...), rest) with the arguments the training loop used."""

    def __init__(self, criterion: nn.Module) -> None:
        self.criterion = criterion

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        (args, kwargs), (rest, named) = batch
        return self.criterion(model(*args, **kwargs), *rest, **named)


class _CriterionOfPair:
    """criterion(model(inputs), target) on a pair."""

    def __init__(self, criterion: nn.Module) -> None:
        self.criterion = criterion

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        inputs, target = batch
        return self.criterion(model(inputs), target)


def _as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


def _fresh(tree: Any) -> Any:
    """The same leaves in new containers, tensors detached: loops change batches in place."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def _seen(result: Any) -> Tensor | None:
    try:
        return scalar_loss(result).detach()
    except TypeError:
        return None


def _active_autocast(model: nn.Module) -> tuple[str, torch.dtype] | None:
    """Device and type of the autocast in force around the loss."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    if not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)


def _buffers(model: nn.Module) -> Parameters:
    return {name: b.detach().clone() for name, b in model.named_buffers()}


def check_batch(batch: Any, model: nn.Module) -> None:
    """Refuse a batch that is empty or lives on another device than the model.

    Raises:
        ValueError: what was expected, what came, what to do.
    """
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    if tensors and all(t.numel() == 0 for t in tensors):
        raise ValueError("expected a batch with samples in it, got only empty tensors")
    homes = {p.device for p in model.parameters()}
    for t in tensors:
        if homes and t.dim() > 0 and t.device not in homes:
            raise ValueError(
                f"expected the batch on the model's device {sorted(map(str, homes))}, got a "
                f"tensor on {t.device}; move it first: batch.to(device)"
            )
