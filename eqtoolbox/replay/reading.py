"""A model as a function of one tree, however its batch is kept and however it is called."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from eqtoolbox.replay.tree import graph_keys


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
        return argument_names(self.model) if self.spread else ()

    def forward(self, *batch: Any) -> Any:
        """The opened output; a tuple may come as one or spread out."""
        whole = len(batch) == 1 and (not self.spread or isinstance(batch[0], tuple))
        given = closed(batch[0] if whole else batch, self.like)
        if self.by_name:
            return opened(self.model(**given))
        return opened(self.model(*given) if self.spread else self.model(given))


def argument_names(model: nn.Module) -> tuple[str, ...]:
    """What a model calls the arguments that it takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)


def opened(batch: Any) -> Any:
    """The batch with dicts in place of dataclasses, named tuples and mappings of other classes.

    So are graphs of PyTorch Geometric (`Data`, `Batch`) and the `Atoms` of ase, whose arrays become
    tensors. Fields that are None are left out.

    Example:
        >>> @dataclasses.dataclass
        ... class Graph:
        ...     nodes: int
        >>> opened((Graph(nodes=3),))
        ({'nodes': 3},)
    """
    named: Any = None
    keys = graph_keys(batch)
    if keys is not None:
        named = [(key, batch[key]) for key in keys]
    elif _is_atoms(batch):
        named = [(name, torch.as_tensor(read(batch))) for name, (read, _) in _ATOMS.items()]
    elif isinstance(batch, Mapping):
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
    named = isinstance(batch, Mapping) or hasattr(batch, "_fields") or _is_atoms(batch)
    named = named or graph_keys(batch) is not None
    return not named and not dataclasses.is_dataclass(batch)


def on_opened(function: Callable[[Any], Any], batch: Any) -> Callable[[Any], Any]:
    """A function of batches like this one, as a function of opened ones with opened outputs.

    Arrays and numbers that it returns become tensors.

    Example:
        >>> @dataclasses.dataclass
        ... class Graph:
        ...     nodes: torch.Tensor
        >>> on_opened(lambda g: 2.0 * len(g.nodes), Graph(torch.ones(3)))({"nodes": torch.ones(2)})
        tensor(4.)
    """

    def tensor(leaf: Any) -> Any:
        measured = isinstance(leaf, float | np.ndarray | np.floating)
        return torch.as_tensor(leaf) if measured else leaf

    return lambda tree: tree_map(tensor, opened(function(closed(tree, batch))))


def closed(tree: Any, like: Any) -> Any:
    """The inverse of `opened`: the containers of `like` with the leaves of the tree."""
    if isinstance(tree, dict):
        if hasattr(like, "_fields"):
            parts = ((tree.get(name), getattr(like, name)) for name in like._fields)
            return type(like)(*(closed(part, old) for part, old in parts))
        if _is_atoms(like):
            return _atoms(tree, like)
        new = copy.copy(like)
        for key, part in tree.items():
            if isinstance(like, Mapping) or graph_keys(like) is not None:
                new[key] = closed(part, like[key])
            else:
                object.__setattr__(new, key, closed(part, getattr(like, key)))
        return new
    if isinstance(tree, tuple | list):
        return type(like)(closed(part, old) for part, old in zip(tree, like, strict=True))
    return tree


def _is_atoms(batch: Any) -> bool:
    """Whether it is a structure of ase, by its methods."""
    wanted = ("get_positions", "get_atomic_numbers", "get_cell", "get_pbc", "set_positions")
    return all(hasattr(type(batch), name) for name in wanted)


def _atoms(tree: dict[str, Any], like: Any) -> Any:
    """A structure like another, with these arrays."""
    new = like.copy()
    for name, values in tree.items():
        _ATOMS[name][1](new, values.detach().cpu().numpy())
    return new


_ATOMS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    "positions": (lambda a: a.get_positions(), lambda a, x: a.set_positions(x)),
    "numbers": (lambda a: a.get_atomic_numbers(), lambda a, x: a.set_atomic_numbers(x)),
    "cell": (lambda a: a.get_cell()[:], lambda a, x: a.set_cell(x)),
    "pbc": (lambda a: a.get_pbc(), lambda a, x: a.set_pbc(x)),
}


def _named(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    parameters = inspect.signature(model.forward).parameters
    named = {n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    return bool(batch) and all(key in named for key in batch)
