"""Losses: functions of (model, batch) made from what the training loop itself called."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from eqtoolbox.replay.scalar import loss_tensor
from eqtoolbox.watch.capture.between import Between


@dataclass(frozen=True)
class SpreadCall:
    """A decorated `function(model, ...)` on the (args, kwargs) that it was called with.

    `owner` is a larger module that the function was given in the model's place.
    """

    function: Callable[..., Any]
    owner: nn.Module | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        args, kwargs = batch
        return self.function(self.owner or model, *args, **kwargs)


@dataclass(frozen=True)
class OwnLoss:
    """The loss that the model returns itself."""

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        args, kwargs = batch
        return model(*args, **kwargs)


@dataclass(frozen=True)
class Criterion:
    """The criterion with the arguments that the training loop used.

    Each argument made of the model's output is a `Between`, and made of it again.
    """

    criterion: nn.Module

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        (args, kwargs), given = batch
        output = model(*args, **kwargs)
        made = tree_map(lambda x: x(output) if isinstance(x, Between) else x, given)
        return self.criterion(*made[0], **made[1])


@dataclass(frozen=True, eq=False)
class Then:
    """A loss function, and what the loop made of its loss before it was differentiated."""

    loss_fn: Callable[[nn.Module, Any], Any]
    made: Between

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        loss = self.loss_fn(model, batch)
        return self.made(loss if isinstance(loss, Tensor) else loss_tensor(loss))


@dataclass(frozen=True)
class CriterionOfPair:
    """criterion(model(inputs), target) on a pair.

    `made` is how the loop made the first argument of the output, as far as one was seen, and
    `flat` whether the target beside it had one dimension.
    """

    criterion: nn.Module
    made: Between | None = None
    flat: bool = False

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        inputs, target = batch
        output = model(inputs)
        if self.made is None:
            return self.criterion(output, target)
        if self.flat and isinstance(target, Tensor):
            target = target.reshape(-1)
        return self.criterion(self.made(output), target)


def as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as the arguments of a model's call."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


def by_position(function: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a function was given by name alone, as positions and names; as it is where none fits."""
    try:
        bound = inspect.signature(function).bind(**kwargs)
    except (TypeError, ValueError):
        return (), kwargs
    return bound.args, bound.kwargs
