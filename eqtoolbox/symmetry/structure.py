"""Batches that are more than one tensor: dicts, tuples and lists of tensors that share a length."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

Tree = Any  # a tensor, or a dict, tuple or list of trees; other leaves are passed on untouched


def tensors(tree: Tree) -> list[Tensor]:
    """All tensors of a tree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def floating(tree: Tree) -> list[Tensor]:
    """The floating-point tensors of a tree."""
    return [leaf for leaf in tensors(tree) if leaf.is_floating_point()]


def on_tensors(change: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with every tensor changed.

    Example:
        >>> on_tensors(torch.neg, {"a": torch.tensor(1), "name": "water"})
        {'a': tensor(-1), 'name': 'water'}
    """
    if isinstance(tree, Tensor):
        return change(tree)
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def batch_size(tree: Tree) -> int:
    """Length of the first dimension, which all tensors of a batch share; 0 without one.

    Raises:
        ValueError: the lengths differ.
    """
    lengths = {len(x) if x.dim() > 0 else 0 for x in tensors(tree)}
    if len(lengths) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors(tree))
        raise ValueError(
            f"all tensors of a batch must start with its size, got shapes {shapes}; "
            'for nodes and edges of graphs give the claim rows="parts" or the name of the leaf '
            "that numbers their samples; for one graph or one set, use "
            "eqtoolbox.symmetry.each.one_sample"
        )
    return lengths.pop() if lengths else 0


def first(tree: Tree, count: int) -> Tree:
    """The first samples of a batch."""
    return on_tensors(lambda x: x[:count], tree)


def precision(tree: Tree) -> float:
    """Rounding unit of the coarsest floating-point tensor."""
    return max(torch.finfo(x.dtype).eps for x in floating(tree))


def like_outputs(batch: Tree, outputs: Tree) -> Tree | None:
    """The last branch of a batch with the structure and the shapes of an output: its targets.

    Example:
        >>> y = {"energy": torch.ones(2), "forces": torch.ones(2, 3)}
        >>> like_outputs((torch.ones(2, 3), y | {"name": "water"}), y)["energy"]
        tensor([1., 1.])
    """
    found = _shaped(batch, outputs)
    if found is None and isinstance(batch, Mapping | tuple | list):
        children = list(batch.values() if isinstance(batch, Mapping) else batch)
        branches = (like_outputs(child, outputs) for child in reversed(children))
        found = next((branch for branch in branches if branch is not None), None)
    return found


def _shaped(branch: Tree, outputs: Tree) -> Tree | None:
    """The parts of a branch that an output has, as it has them; None where one differs."""
    if isinstance(outputs, Tensor):
        fits = isinstance(branch, Tensor) and branch.shape == outputs.shape
        return branch if fits and branch.is_floating_point() else None
    if isinstance(outputs, Mapping):
        if not isinstance(branch, Mapping) or not outputs.keys() <= branch.keys():
            return None
        parts = {k: _shaped(branch[k], outputs[k]) for k in outputs}
        return None if any(p is None for p in parts.values()) else parts
    if not isinstance(outputs, tuple | list) or not isinstance(branch, tuple | list):
        return None
    if len(outputs) != len(branch):
        return None
    several = [_shaped(b, o) for b, o in zip(branch, outputs, strict=True)]
    return None if any(p is None for p in several) else type(outputs)(several)


@dataclass(frozen=True)
class Layout:
    """How the floating-point tensors of a structured output lie in one matrix (batch, features).

    Each part is scaled to a norm of about one a sample, by a power of two so that nothing is
    rounded: an energy of -1e4 and forces of 1e-2 then count alike.
    """

    spec: TreeSpec
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, tree: Tree) -> "Layout":
        """The layout of an output.

        Raises:
            TypeError: a leaf is no floating-point tensor.
        """
        paths, spec = tree_flatten_with_path(tree)
        for path, leaf in paths:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(
                    f"outputs must be floating point, got {kind} at {keystr(path)}; "
                    "let the function return logits and not classes, and leave the rest out"
                )
        leaves = [leaf for _, leaf in paths]
        if not leaves:
            raise TypeError(f"outputs hold no tensor, got {type(tree).__name__}")
        return cls(
            spec,
            tuple(keystr(path).strip("[]'.") for path, _ in paths),
            tuple(tuple(leaf.shape[1:]) for leaf in leaves),
            tuple(_scale(leaf) for leaf in leaves),
            tuple(leaf.dtype for leaf in leaves),
        )

    def pack(self, tree: Tree) -> Tensor:
        """(batch, features) in the coarsest dtype of the parts.

        Raises:
            ValueError: the structure or a shape is another one.
        """
        leaves, spec = tree_flatten(tree)
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        if spec != self.spec or shapes != self.shapes:
            raise ValueError(f"expected outputs of shapes {self.shapes}, got {shapes}")
        dtype = max((leaf.dtype for leaf in leaves), key=lambda d: torch.finfo(d).eps)
        parts = [
            (leaf / scale).flatten(1) if leaf.dim() > 1 else (leaf / scale)[:, None]
            for leaf, scale in zip(leaves, self.scales, strict=True)
        ]
        return torch.cat([part.to(dtype) for part in parts], dim=1)

    def unpack(self, packed: Tensor) -> Tree:
        """The inverse of `pack`."""
        parts = zip(self.columns(packed), self.shapes, self.scales, self.dtypes, strict=True)
        leaves = [
            (columns.reshape(len(packed), *shape) * scale).to(dtype)
            for columns, shape, scale, dtype in parts
        ]
        return tree_unflatten(leaves, self.spec)

    def columns(self, packed: Tensor) -> list[Tensor]:
        """The part of each leaf, (batch, its features)."""
        return list(torch.split(packed, [math.prod(shape) for shape in self.shapes], dim=1))


def _scale(x: Tensor) -> float:
    size = float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0
    return 2.0 ** round(math.log2(size * math.sqrt(max(x[0].numel(), 1)))) if size > 0 else 1.0
