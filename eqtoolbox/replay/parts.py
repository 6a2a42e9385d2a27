"""Parts: batches whose rows are parts of samples, such as the nodes and edges of several graphs."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from eqtoolbox.replay.reading import opened
from eqtoolbox.replay.tree import map_tensors, tensors

NUMBERS = frozenset({  # what PyG, SchNet, MACE, TorchMD and others call the sample of each row
    "batch", "batch_index", "batch_idx", "batch_indices", "batch_vector", "idx_m", "graph_index",
    "graph_idx", "graph_id", "graph_ids", "node_batch", "segment_ids", "system_index",
    "system_idx", "molecule_index", "mol_idx", "atomic_subsystem_indices", "data_index",
})  # fmt: skip


def in_parts(batch: Any, rows: str = "auto", arguments: Sequence[str] = ()) -> bool:
    """Whether rows of the tensors are parts of samples, so that lengths say nothing of the batch.

    Args:
        batch: a tree of tensors, opened.
        rows: "auto" to look for the number of the sample of each row (by its name, as PyG's
            `batch`) or, among tensors of different lengths, for one or for a list of edges;
            "samples" or "parts" where it is known; or the name of the leaf with those numbers.
        arguments: what the entries of a tuple are called.

    Raises:
        ValueError: no leaf has that name.

    Example:
        >>> molecules = {"pos": torch.rand(5, 3), "batch": torch.tensor([0, 0, 0, 1, 1])}
        >>> in_parts(molecules), in_parts({"pos": torch.rand(5, 3)})
        (True, False)
    """
    if rows in ("samples", "parts"):
        return rows == "parts"
    named = dict(_named(batch, arguments))
    if rows != "auto":
        if rows not in {name.rpartition(".")[2] for name in named} | named.keys():
            raise ValueError(
                f"rows={rows!r} must name the leaf with the number of the sample of each row, got "
                f'leaves {", ".join(named)}; or say rows="parts", or "samples"'
            )
        return True
    if named.keys() >= {"positions", "numbers", "cell", "pbc"}:  # one structure of ase
        return True
    lengths = {len(x) if x.dim() else 0 for x in named.values()}
    for name, x in named.items():
        known = name.rpartition(".")[2] in NUMBERS
        if _whole(x) and ((known and x.dim() == 1) or (len(lengths) > 1 and _tells(x, named))):
            return True
    return False


def _tells(x: Tensor, named: dict[str, Tensor]) -> bool:
    """Whether it counts samples from 0 on, or pairs rows of another leaf."""
    beside = {len(y) for y in named.values() if y.dim() and y.is_floating_point()}
    if x.dim() == 1:
        steps = x.diff()
        counts = len(x) > 1 and int(x[0]) == 0 and bool(((steps == 0) | (steps == 1)).all())
        return counts and len(x) in beside and int(x[-1]) + 1 < len(x)
    pairs = x.dim() == 2 and 2 in x.shape and x.numel() > 0 and int(x.min()) >= 0
    return pairs and int(x.max()) < max(beside, default=0)


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool


def _named(batch: Any, arguments: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for path, leaf in tree_flatten_with_path(batch)[0]:
        if isinstance(leaf, Tensor):
            words = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
            if words and words[0].isdigit() and int(words[0]) < len(arguments):
                words[0] = arguments[int(words[0])]
            yield ".".join(words), leaf


def pieces(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """A batch in so many pieces, each with its number of samples.

    The first tensor tells the batch size; every tensor of that length is cut.

    Raises:
        ValueError: the batch has fewer samples, or rows that are parts of samples.
    """
    if in_parts(opened(batch)):
        raise ValueError("rows of this batch are parts of samples, which cannot be cut apart")
    leaves = [x for x in tensors(batch) if x.dim() > 0]
    samples = len(leaves[0]) if leaves else 0
    if samples < parts:
        raise ValueError(f"expected at least {parts} samples to split, got {samples}")
    edges = [samples * i // parts for i in range(parts + 1)]

    def piece(start: int, end: int) -> Any:
        def cut(x: Tensor) -> Tensor:
            return x[start:end] if x.dim() > 0 and len(x) == samples else x

        return map_tensors(cut, batch)

    return [(piece(a, b), float(b - a)) for a, b in pairwise(edges)]
