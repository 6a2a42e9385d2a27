"""How reshaping, cutting, joining and summing along dimensions commute with a group."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from eqtoolbox.enforce.bearing import Bearing, permuting
from eqtoolbox.enforce.follow import Follow, Rule
from eqtoolbox.enforce.representation import Unfit, still
from eqtoolbox.enforce.tie_pointwise import held, unsigned
from eqtoolbox.enforce.torch_calls import TorchCall
from eqtoolbox.enforce.unifying import Stacked, cut


def dims(c: TorchCall, given: Any, *, all_if_none: bool = True) -> list[int]:
    """Dimensions of a sample out of those of the batch.

    Raises:
        Unfit: the batch is among them.
    """
    rank = c.x.dim()
    if given is None:
        given = range(rank) if all_if_none else []
    found = [d % rank for d in ([given] if isinstance(given, int) else given)]
    if 0 in found:
        raise Unfit(f"{c.name} goes over the batch")
    return sorted(d - 1 for d in found)


def _reshape(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    if c.result.shape[:1] != c.x.shape[:1]:
        raise Unfit(f"{c.name} folds the batch: {tuple(c.x.shape)} to {tuple(c.result.shape)}")
    return x.reshaped(tuple(c.result.shape[1:]))


def _permute(f: Follow, c: TorchCall) -> Bearing:
    given = c.args[1:] if len(c.args) > 1 else (c.kwargs["dims"],)
    order = list(given[0] if isinstance(given[0], Sequence) else given)
    return _permuted(f, c, [d % c.x.dim() for d in order])


def _transpose(f: Follow, c: TorchCall) -> Bearing:
    rank = c.x.dim()
    a, b = (-2, -1) if c.name in ("mT", "mH") else (c.arg(1, "dim0"), c.arg(2, "dim1"))
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return _permuted(f, c, order)


def _permuted(f: Follow, c: TorchCall, order: list[int]) -> Bearing:
    if order[0] != 0:
        raise Unfit(f"{c.name} moves the batch to another dimension")
    return held(f, c).permuted([d - 1 for d in order[1:]])


def _movedim(f: Follow, c: TorchCall) -> Bearing:
    source, to = c.arg(1, "source"), c.arg(2, "destination")
    if not isinstance(source, int) or not isinstance(to, int):
        raise Unfit(f"{c.name} of several dimensions: write permute")
    order = list(range(c.x.dim()))
    order.insert(to % c.x.dim(), order.pop(source))
    return _permuted(f, c, order)


def _expand(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    shape = tuple(c.result.shape[1:])
    if len(shape) != len(x.shape) or c.result.shape[0] != c.x.shape[0]:
        raise Unfit(f"{c.name} adds dimensions: write unsqueeze first")
    made = Bearing(x.order, ())
    for n in shape:
        head, x = x.split(1)
        made += head if head.shape == (n,) else Bearing.still(x.order, (n,))
        if head.shape != (n,) and not head.rests:
            raise Unfit(f"{c.name} spreads entries that change sign")
    return made


def _cat(f: Follow, c: TorchCall) -> Bearing:
    tensors = c.arg(0, "tensors")
    (dim,) = dims(TorchCall(c.name, (tensors[0],), {}, None), c.arg(1, "dim", 0))
    parts = [f.of(x) for x in tensors]
    if any(part is None for part in parts):
        raise Unfit(f"{c.name} joins what depends on the inputs with what does not")
    cuts = [part.around(dim) for part in parts if part is not None]
    left, _, right = cuts[0]
    for other in cuts[1:]:
        left.unify(other[0])
        right.unify(other[2])
    blocks = tuple(middle.block for _, middle, _ in cuts)
    size = sum(block.size for block in blocks)
    return left + Bearing.of(left.order, (Stacked(blocks), (size,))) + right


def _stack(f: Follow, c: TorchCall) -> Bearing:
    tensors = c.arg(0, "tensors")
    parts = [f.of(x) for x in tensors]
    dim = c.arg(1, "dim", 0) % c.result.dim() - 1
    if any(part is None for part in parts) or dim < 0:
        raise Unfit(f"{c.name} of constants, or over the batch")
    first = parts[0]
    assert first is not None
    for part in parts[1:]:
        assert part is not None
        first.unify(part)
    left, right = first.split(dim)
    return left + Bearing.still(left.order, (len(parts),)) + right


def _split(f: Follow, c: TorchCall) -> tuple[Bearing, ...]:
    at = c.kwargs.get("dim", c.args[2] if len(c.args) > 2 else 0)
    (dim,) = dims(c, at)
    return halves(held(f, c), dim, [x.shape[dim + 1] for x in c.result], c.name)


def halves(x: Bearing, dim: int, sizes: Sequence[int], what: str) -> tuple[Bearing, ...]:
    """The pieces of a dimension.

    Raises:
        Unfit: the group moves entries from one to another.
    """
    left, middle, right = x.around(dim)
    found = cut(middle.block, sizes)
    if found is None:
        raise Unfit(
            f"{what} cuts {middle.block.size} entries into {list(sizes)}, which the group mixes"
        )
    pieces = zip(found, sizes, strict=True)
    return tuple(left + Bearing.of(x.order, (b, (n,))) + right for b, n in pieces)


def _unbind(f: Follow, c: TorchCall) -> tuple[Bearing, ...]:
    (dim,) = dims(c, c.arg(1, "dim", 0))
    left, middle, right = held(f, c).around(dim)
    if not middle.rests:
        raise Unfit(f"{c.name} parts entries that the group exchanges")
    return (left + right,) * len(c.result)


def _glu(f: Follow, c: TorchCall) -> Bearing:
    (dim,) = dims(c, c.arg(1, "dim", -1))
    n = c.x.shape[dim + 1] // 2
    value, gate = halves(held(f, c), dim, [n, n], c.name)
    permuting(gate, "the gate of glu")
    value.unify(gate)
    return value


def _getitem(f: Follow, c: TorchCall) -> Bearing:
    """Whole dimensions, new ones, and entries of those that the group leaves alone."""
    index = c.args[1] if isinstance(c.args[1], tuple) else (c.args[1],)
    if any(isinstance(i, Tensor | list) for i in index):
        raise Unfit("indexing by a tensor or a list is not followed")
    given = sum(i is not None and i is not Ellipsis for i in index)
    fill = [slice(None)] * (c.x.dim() - given)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = [*index[:at], *fill, *index[at + 1 :]]
    if full[0] != slice(None):
        raise Unfit("an index goes into the batch")
    x, made = held(f, c), Bearing(f.order, ())
    for i in full[1:]:
        if i is None:
            made += Bearing.still(f.order, (1,))
            continue
        head, x = x.split(1)
        made += _picked(head, i)
    return made


def _picked(head: Bearing, i: Any) -> Bearing:
    n = head.shape[0]
    if isinstance(i, int):
        found = halves(head, 0, [k for k in (i % n, 1, n - 1 - i % n) if k], "an index")
        one = found[1 if i % n else 0]
        if not one.rests:
            raise Unfit("an index picks an entry that the group moves")
        return Bearing(head.order, ())
    start, stop, step = i.indices(n)
    if (start, stop, step) == (0, n, 1):
        return head
    if step != 1:
        if not head.rests:
            raise Unfit("a step in an index skips entries that the group exchanges")
        return Bearing.still(head.order, (len(range(start, stop, step)),))
    bounds = list(pairwise(sorted({0, start, stop, n})))
    found = halves(head, 0, [b - a for a, b in bounds], "an index")
    return found[bounds.index((start, stop))]


def _total(f: Follow, c: TorchCall) -> Bearing:
    """Sums and means."""
    return _reduced(f, c, "signs of what is summed")


def _norm(f: Follow, c: TorchCall) -> Bearing:
    """Lengths, which know no signs."""
    return _reduced(f, c, "")


def _reduced(f: Follow, c: TorchCall, what: str) -> Bearing:
    x = held(f, c)
    first = c.args[1] if len(c.args) > 1 else None
    given = c.kwargs.get("dim", c.kwargs.get("axis", first))
    if c.name in ("norm", "vector_norm", "linalg_vector_norm"):
        given = c.kwargs.get("dim", c.args[2] if len(c.args) > 2 else None)
        x = unsigned(x)
    if c.name in ("amax", "amin", "logsumexp", "prod"):
        permuting(x, c.name)
    over = dims(c, given)
    kept = c.result.dim() == c.x.dim()
    made, at = Bearing(x.order, ()), 0
    while at < c.x.dim() - 1:
        run = at + 1
        while run < c.x.dim() - 1 and (run in over) == (at in over):
            run += 1
        head, x = x.split(run - at)
        if at in over:
            permuting(head, c.name) if what else None
            made += Bearing.still(x.order, (1,) * (run - at if kept else 0))
        else:
            made += head
        at = run
    return made


def _softmax(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    permuting(x, c.name)
    (dim,) = dims(c, c.arg(1, "dim", -1))
    x.around(dim)
    return x


def _spread(f: Follow, c: TorchCall) -> Bearing:
    """x / |x| along dimensions."""
    x = held(f, c)
    unsigned(x)
    (dim,) = dims(c, c.arg(2, "dim", 1))
    x.around(dim)
    return x


def _largest(f: Follow, c: TorchCall) -> tuple[Bearing | None, ...]:
    """The values alone: where they were found is not followed."""
    permuting(held(f, c), c.name)
    values = TorchCall(
        c.name, c.args, c.kwargs, c.result[0] if isinstance(c.result, tuple) else c.result
    )
    return (_reduced(f, values, "signs"), None)


def _embedding(f: Follow, c: TorchCall) -> Bearing:
    """Rows of a table by numbers that keep their values: only places move."""
    x = held(f, c)
    return x + Bearing.of(x.order, (still(x.order, c.result.shape[-1]), (c.result.shape[-1],)))


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Any] = {
    **_table("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as", _reshape),
    **_table("transpose swapaxes swapdims mT", _transpose),
    **_table("movedim moveaxis", _movedim),
    **_table("expand expand_as", _expand),
    **_table("cat concat concatenate", _cat),
    **_table("chunk split tensor_split split_with_sizes", _split),
    **_table("sum mean amax amin logsumexp", _total),
    **_table("norm vector_norm linalg_vector_norm", _norm),
    **_table("softmax log_softmax softmin", _softmax),
    "permute": _permute,
    "stack": _stack,
    "unbind": _unbind,
    "glu": _glu,
    "__getitem__": _getitem,
    "max": _largest,
    "min": _largest,
    "normalize": _spread,
    "embedding": _embedding,
}
