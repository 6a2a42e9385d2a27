"""Redone: what a node of autograd's tape tells of its operation, and how that is done again."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Step = tuple[str, tuple[Any, ...]]  # an operation and what it was given beside the tensor
Reads = Callable[[Any, int], Step]
ALIKE = 8.0  # roundings by which entries of one constant may be apart

ENTRIES = (  # functions of each entry by itself
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf", "erfc", "exp",
    "expm1", "log", "log10", "log1p", "log2", "neg", "reciprocal", "relu", "rsqrt", "sigmoid",
    "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
_SHAPES = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")


def kind(node: Any) -> str:
    """The operation of a node, as autograd spells it.

    Example:
        >>> kind((torch.ones(1, requires_grad=True) * 2).grad_fn)
        'Mul'
    """
    return re.sub(r"Backward\d*$", "", node.name())


def passed(node: Any, number: int) -> tuple[Any, int]:
    """Past the identity that DistributedDataParallel puts behind what a model returns.

    It has all outputs in one node, so that each seems to be made of all of them.

    Args:
        node: an operation.
        number: which of its results is meant.

    Returns:
        The operation that the result is of, and its number there.
    """
    while node is not None and kind(node) == "_DDPSink":
        if len(node.next_functions) != len(node._input_metadata):
            break  # some of them are no tensors: which, it does not tell
        node, number = node.next_functions[number]
    return node, number


def step(node: Any, number: int, other: Any = None) -> Step | None:
    """What to do again, if the node tells it all.

    Args:
        node: the operation.
        number: which of its results is asked for.
        other: the way of its second tensor, where that comes from the output as the first does.
    """
    try:
        if other is not None:
            return _PAIRS[kind(node)](node, other)
        live = next(k for k, (n, _) in enumerate(node.next_functions) if n is not None)
        if kind(node) in _BESIDE:
            return _beside(node, live)
        return _READS[kind(node)](node, number) if live == 0 else None
    except (LookupError, AttributeError, RuntimeError):  # another overload; written over since
        return None


def constant(node: Any, before: Tensor, result: Tensor) -> Step | None:
    """A sum or a product, whose constant the node does not keep, or no more: read off its result.

    Args:
        node: the operation.
        before: its tensor that comes from the output.
        result: what it came to.
    """
    if before.dtype != result.dtype:
        return None
    if kind(node) in ("Mul", "Div") and before.shape == result.shape and before.all():
        return "mul", (_least(result / before, 0.0),)
    if kind(node) not in ("Add", "Sub", "Rsub"):
        return None
    live = next(k for k, (n, _) in enumerate(node.next_functions) if n is not None)
    size = max(float(x.abs().max()) for x in (before, result))
    allowed = ALIKE * torch.finfo(result.dtype).eps * size if result.is_floating_point() else 0.0
    if live == 0 and kind(node) != "Rsub":
        return "add", (_least(result - before, allowed), 1)
    sign = 1 if kind(node) == "Add" else -1
    factor = sign * node._saved_alpha
    return "radd", (_least(result - factor * before, allowed), factor)


def earlier(node: Any, which: int, result: Tensor | None) -> Tensor | None:
    """What an operation was given, if the node keeps it or its result tells; None if unknown."""
    before, number = node.next_functions[which]
    metadata = getattr(before, "_input_metadata", None)
    if metadata is None or number >= len(metadata):
        return None
    shape = torch.Size(int(n) for n in metadata[number].shape)
    try:
        kept = getattr(node, "_saved_self", None) if which == 0 else None
        if isinstance(kept, Tensor) and kept.shape == shape:
            return kept.detach()
        if result is None:
            return None
        back = _INVERSES[kind(node)](node, result, shape)
    except (LookupError, AttributeError, RuntimeError):
        return None
    return back if back.shape == shape else None


def _least(given: Tensor, allowed: float) -> Tensor:
    """A constant as small as it can be: one number, one row for all, or all rows."""
    if given.numel() and float(given.max() - given.min()) <= allowed:
        return given.mean()
    if given.dim() > 1 and float((given - given[:1]).abs().max()) <= allowed:
        return given.mean(0, keepdim=True)
    return given


def _signed(value: Any) -> Any:
    """A dimension or an index, which nodes keep without its sign."""
    if isinstance(value, tuple | list):
        return tuple(_signed(v) for v in value)
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in node._input_metadata[0].shape)


def _reshaped(node: Any, _: int) -> Step:
    shape = _shape(node)
    return ("reshape", shape[1:]) if shape else ("scalar", ())


def _saved(name: str, *fields: str) -> Reads:
    return lambda node, _: (name, tuple(_signed(getattr(node, f"_saved_{f}")) for f in fields))


def _numbered(name: str, *fields: str) -> Reads:
    """The same of an operation with several results."""
    return lambda node, number: (
        name, (number, *(_signed(getattr(node, f"_saved_{f}")) for f in fields))
    )  # fmt: skip


_READS: dict[str, Reads] = {
    **dict.fromkeys(_SHAPES, _reshaped),
    "Clone": _saved("same"),
    "Alias": _saved("same"),
    "ToCopy": lambda node, _: ("to", (node._input_metadata[0].dtype,)),
    "Transpose": _saved("transpose", "dim0", "dim1"),
    "T": _saved("t"),
    "Permute": _saved("permute", "dims"),
    "Expand": lambda node, _: ("expand", _shape(node)),
    "Select": _saved("select", "dim", "index"),
    "Slice": _saved("slice", "dim", "start", "end", "step"),
    "Index": _saved("index", "indices"),
    "Gather": _saved("gather", "dim", "index"),
    "Split": _numbered("split", "split_size", "dim"),
    "Unbind": _numbered("unbind", "dim"),
    "LogSoftmax": _saved("log_softmax", "dim"),
    "Softmax": _saved("softmax", "dim"),
    "LinalgVectorNorm": _saved("vector_norm", "ord", "dim", "keepdim"),
    "Mean": lambda node, _: ("mean", (_dims(node), _kept(node))),
    "Sum": lambda node, _: ("sum", (_dims(node), _kept(node))),
    "Clamp": _saved("clamp", "min", "max"),
    "ClampMin": _saved("clamp", "min"),
    "ClampMax": _saved("clamp_max", "max"),
    "Pow": _saved("pow", "exponent"),
    "Softplus": _saved("softplus", "beta", "threshold"),
    "Gelu": _saved("gelu", "approximate"),
    **{name.title(): _saved(name) for name in ENTRIES},
}


def _dims(node: Any) -> Any:
    return _signed(getattr(node, "_saved_dim", None))


def _kept(node: Any) -> bool:
    return bool(getattr(node, "_saved_keepdim", False))


# -- operations of two tensors -----------------------------------------------------------------

_BESIDE = {"Mul": ("mul", "other", "self"), "Div": ("div", "other", "self"),
           "Mm": ("mm", "mat2", "self"), "Bmm": ("mm", "mat2", "self")}  # fmt: skip
_PAIRS: dict[str, Callable[[Any, Any], Step]] = {
    "Add": lambda node, way: ("add", (way, node._saved_alpha)),
    "Sub": lambda node, way: ("add", (way, -node._saved_alpha)),
    "Mul": lambda _, way: ("mul", (way,)),
    "Div": lambda _, way: ("div", (way,)),
    "Mm": lambda _, way: ("mm", (way,)),
    "Bmm": lambda _, way: ("mm", (way,)),
}


def _beside(node: Any, live: int) -> Step | None:
    """An operation with a constant that the node keeps."""
    name, *fields = _BESIDE[kind(node)]
    other = getattr(node, f"_saved_{fields[live]}")
    if other is None:
        return None
    return name if live == 0 else f"r{name}", (other.detach(),)


_INVERSES: dict[str, Callable[[Any, Tensor, torch.Size], Tensor]] = {
    **dict.fromkeys((*_SHAPES, "Clone", "Alias"), lambda _, x, shape: x.reshape(shape)),
    "Transpose": lambda node, x, _: x.transpose(
        _signed(node._saved_dim0), _signed(node._saved_dim1)
    ),
    "T": lambda _, x, __: x.t(),
    "Neg": lambda _, x, __: -x,
    "Sqrt": lambda _, x, __: x.square(),
    "Exp": lambda _, x, __: x.log(),
    "Reciprocal": lambda _, x, __: x.reciprocal(),
    "Mul": lambda node, x, _: x / node._saved_other.detach(),
    "Div": lambda node, x, _: x * node._saved_other.detach(),
}


def _fitting(x: Tensor, other: Any) -> Any:
    """A constant of as many rows as the tensor: of a part of the batch it would be another."""
    alike = isinstance(other, Tensor) and other.dim() == x.dim() > 0
    if alike and other.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"the loop combined the output with {other.shape[0]} rows of its own, got "
            f"{x.shape[0]} rows of output: they cannot be told apart by sample"
        )
    return other


def _mm(x: Tensor, other: Tensor) -> Tensor:
    return x @ (other.to(x.dtype) if other.is_floating_point() else other)


REPLAYS: dict[str, Callable[..., Tensor]] = {
    "reshape": lambda x, *rest: x.reshape(-1, *rest),  # of fewer samples, too
    "scalar": lambda x: x.reshape(()),
    "same": lambda x: x,
    "to": lambda x, dtype: x if x.dtype == torch.float64 else x.to(dtype),
    "transpose": torch.transpose,
    "t": torch.t,
    "permute": torch.permute,
    "expand": lambda x, *shape: x.expand(-1 if x.dim() == len(shape) else shape[0], *shape[1:]),
    "select": torch.select,
    "slice": lambda x, dim, start, end, step: x[(slice(None),) * dim + (slice(start, end, step),)],
    "index": lambda x, indices: x[tuple(slice(None) if i is None else i for i in indices)],
    "gather": torch.gather,
    "split": lambda x, number, size, dim: torch.split(x, size, dim)[number],
    "unbind": lambda x, number, dim: torch.unbind(x, dim)[number],
    "log_softmax": lambda x, dim: x.log_softmax(dim),
    "softmax": lambda x, dim: x.softmax(dim),
    "vector_norm": torch.linalg.vector_norm,
    "mean": lambda x, dim, keepdim: x.mean() if dim is None else x.mean(dim, keepdim),
    "sum": lambda x, dim, keepdim: x.sum() if dim is None else x.sum(dim, keepdim),
    "clamp": torch.clamp,
    "clamp_max": lambda x, most: x.clamp(max=most),
    "pow": torch.pow,
    "add": lambda x, other, factor: torch.add(x, _fitting(x, other), alpha=factor),
    "radd": lambda x, other, factor: _fitting(x, other) + factor * x,
    "mul": lambda x, other: x * _fitting(x, other),
    "rmul": lambda x, other: x * _fitting(x, other),
    "div": lambda x, other: x / _fitting(x, other),
    "rdiv": lambda x, other: _fitting(x, other) / x,
    "mm": _mm,
    "rmm": lambda x, other: other.to(x.dtype) @ x,
    "softplus": F.softplus,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    **{name: getattr(torch, name) for name in ENTRIES},
}
