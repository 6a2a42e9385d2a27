"""A batch: tensors in whatever the training loop keeps them in."""

import copy
import dataclasses
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Leaf = Callable[[Tensor], Any]


def map_tensors(change: Leaf, batch: Any) -> Any:
    """The batch in new containers, every tensor in it replaced by `change(tensor)`.

    Reaches into tuples, lists, dicts, named tuples, dataclasses and mappings of any class (such as
    transformers' BatchEncoding), graphs of PyTorch Geometric, and whatever is registered with
    torch's pytree.

    Example:
        >>> import torch
        >>> map_tensors(torch.numel, {"x": torch.zeros(2, 3), "name": "a"})
        {'x': 6, 'name': 'a'}
    """
    leaves, spec = tree_flatten(batch)
    return tree_unflatten([_leaf(change, leaf) for leaf in leaves], spec)


def tensors(batch: Any) -> list[Tensor]:
    """Every tensor in the batch, in order."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(note, batch)
    return found


def check_batch(batch: Any, model: nn.Module) -> None:
    """Refuse a batch that is empty or lives on another device than the model.

    Raises:
        ValueError: what was expected, what came, what to do.
    """
    leaves = tensors(batch)
    if leaves and all(t.numel() == 0 for t in leaves):
        raise ValueError("expected a batch with samples in it, got only empty tensors")
    homes = {p.device for p in model.parameters()}
    for t in leaves:
        if homes and t.dim() > 0 and t.device not in homes:
            raise ValueError(
                f"expected the batch on the model's device {sorted(map(str, homes))}, got a "
                f"tensor on {t.device}; move it first: batch.to(device)"
            )


def graph_keys(batch: Any) -> list[str] | None:
    """Names of what a graph of PyTorch Geometric (`Data`, `Batch`) holds; None for anything else.

    By its methods: the library is not imported.
    """
    methods = ("to_dict", "keys", "__getitem__", "__setitem__")
    if not all(hasattr(type(batch), n) for n in methods) or not hasattr(batch, "stores"):
        return None
    keys = batch.keys
    return [str(key) for key in (keys() if callable(keys) else keys)]


def _leaf(change: Leaf, leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return change(leaf)
    if isinstance(leaf, nn.Module):
        return leaf
    keys = graph_keys(leaf)
    if keys is not None:
        graph = copy.copy(leaf)
        for key in keys:
            graph[key] = map_tensors(change, leaf[key])
        return graph
    if isinstance(leaf, MutableMapping):
        new: Any = copy.copy(leaf)
        for key in list(leaf):
            new[key] = map_tensors(change, leaf[key])
        return new
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        new = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            if hasattr(leaf, field.name):
                value = map_tensors(change, getattr(leaf, field.name))
                object.__setattr__(new, field.name, value)
        return new
    return leaf
