"""A model as a function of one tree, however its batch is kept and however it is called."""

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


class Reading(nn.Module):
    """model(batch), model(*batch) or model(**batch), of batches whose dataclasses are dicts.

    A tuple holds the arguments of the call; so does a dict whose keys all are names of them.

    Example:
        >>> import torch
        >>> class Springs(nn.Module):
        ...     def forward(self, x, stiffness):
        ...         return stiffness * x
        >>> batch = {"x": torch.ones(2), "stiffness": torch.full((2,), 3.0)}
        >>> Reading(Springs(), batch)(batch)
        tensor([3., 3.])
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()
        self.model = model
        self.like = batch
        self.spread = isinstance(opened(batch), tuple)
        self.by_name = isinstance(batch, Mapping) and _named(model, batch)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the model calls the entries of a tuple."""
        if not self.spread:
            return ()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.model.forward).parameters.values()
        return tuple(p.name for p in parameters if p.kind in kinds)

    def forward(self, *batch: Any) -> Any:
        """The opened output; a tuple may come as one or spread out."""
        whole = len(batch) == 1 and (not self.spread or isinstance(batch[0], tuple))
        given = closed(batch[0] if whole else batch, self.like)
        if self.by_name:
            return opened(self.model(**given))
        return opened(self.model(*given) if self.spread else self.model(given))


def opened(batch: Any) -> Any:
    """The batch with dicts in place of dataclasses, named tuples and mappings of other classes.

    Fields that are None are left out.

    Example:
        >>> @dataclasses.dataclass
        ... class Graph:
        ...     nodes: int
        >>> opened((Graph(nodes=3),))
        ({'nodes': 3},)
    """
    named: Any = None
    if isinstance(batch, Mapping):
        named = batch.items()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        named = [(f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch)]
    elif hasattr(batch, "_fields"):
        named = zip(batch._fields, batch, strict=True)
    if named is not None:
        return {name: opened(part) for name, part in named if part is not None}
    if isinstance(batch, tuple | list):
        return type(batch)(opened(part) for part in batch)
    return batch


def is_open(batch: Any) -> bool:
    """Whether `opened` leaves the batch in the containers that it has."""
    if type(batch) is dict:
        return all(is_open(part) for part in batch.values())
    if type(batch) in (tuple, list):
        return all(is_open(part) for part in batch)
    named = isinstance(batch, Mapping) or hasattr(batch, "_fields")
    return not named and not dataclasses.is_dataclass(batch)


def closed(tree: Any, like: Any) -> Any:
    """The inverse of `opened`: the containers of `like` with the leaves of the tree."""
    if isinstance(tree, dict):
        if hasattr(like, "_fields"):
            parts = ((tree.get(name), getattr(like, name)) for name in like._fields)
            return type(like)(*(closed(part, old) for part, old in parts))
        new = copy.copy(like)
        for key, part in tree.items():
            if isinstance(like, Mapping):
                new[key] = closed(part, like[key])
            else:
                object.__setattr__(new, key, closed(part, getattr(like, key)))
        return new
    if isinstance(tree, tuple | list):
        return type(like)(closed(part, old) for part, old in zip(tree, like, strict=True))
    return tree


def _named(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    parameters = inspect.signature(model.forward).parameters
    named = {n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    return bool(batch) and all(key in named for key in batch)
