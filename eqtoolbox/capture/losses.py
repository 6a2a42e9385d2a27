"""Losses: functions of (model, batch) made from what the training loop itself called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Spread:
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
    """criterion(model(...), rest) with the arguments that the training loop used."""

    criterion: nn.Module

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        (args, kwargs), (rest, named) = batch
        return self.criterion(model(*args, **kwargs), *rest, **named)


@dataclass(frozen=True)
class CriterionOfPair:
    """criterion(model(inputs), target) on a pair."""

    criterion: nn.Module

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        inputs, target = batch
        return self.criterion(model(inputs), target)


def as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as the arguments of a model's call."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}
