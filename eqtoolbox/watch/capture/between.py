"""Between: what a training loop does to a model's output before the criterion sees it.

Read off the graph that autograd recorded: `criterion(model(x).squeeze(1), y)` leaves a
SqueezeBackward between output and argument. Nothing has to run inside the loop's own code.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from eqtoolbox.replay.reading import opened

LONGEST = 16  # operations that are followed
Step = tuple[str, tuple[Any, ...]]  # an operation and what it was given beside the tensor


class NotFollowed(Exception):
    """What happened to an output cannot be done again; says which operation it was."""


@dataclass(frozen=True)
class Between:
    """From what the model returns to one argument of the criterion.

    Example:
        >>> model, x = torch.nn.Linear(2, 1), torch.ones(3, 2)
        >>> output = model(x)
        >>> found = Between.of(output, output.squeeze(1))
        >>> found.steps, found(torch.ones(5, 1)).shape
        ((('reshape', ()),), torch.Size([5]))
    """

    path: tuple[Any, ...]  # keys of the tensor in the opened output; of none, its only one
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, output: Any, given: Tensor) -> "Between | None":
        """How `given` was made of the output; None where it was not.

        Raises:
            NotFollowed: it was, but not by operations that can be done again.
        """
        sources = {path: leaf for path, leaf in _leaves(output) if leaf.requires_grad}
        for path, leaf in sources.items():
            if leaf is given or (given.is_leaf == leaf.is_leaf and _same(leaf, given)):
                return cls(path, ())
        nodes = {(leaf.grad_fn, leaf.output_nr): path for path, leaf in sources.items()}
        found = _chain(given, nodes)
        if found is None:
            return None
        path, steps = found
        made = cls(path, steps)
        again = made(output if path else sources[path])
        alike = again.shape == given.shape and again.dtype == given.dtype
        if not alike or not torch.equal(again.detach().nan_to_num(), given.detach().nan_to_num()):
            raise NotFollowed("writing into it")
        return made

    def __call__(self, output: Any) -> Tensor:
        found: Any = output
        for key in self.path:
            found = _opened(found)[key]
        for name, given in self.steps:
            found = _REPLAYS[name](found, *given)
        return found  # type: ignore[no-any-return]


def _leaves(output: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    for path, leaf in tree_flatten_with_path(_opened(output))[0]:
        if isinstance(leaf, Tensor):
            yield tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path), leaf


def _opened(output: Any) -> Any:
    """Containers as dicts, tuples and lists; of an object that is none its attributes."""
    plain = opened(output)
    if plain is not output or isinstance(plain, (Tensor, dict, tuple, list)):
        return plain
    return dict(vars(output)) if hasattr(output, "__dict__") else plain


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether it is the same tensor; hooks of modules hand on aliases."""
    alike = x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
    return alike and x.numel() > 0 and x.data_ptr() == y.data_ptr()


def _chain(
    given: Tensor, nodes: dict[tuple[Any, int], tuple[Any, ...]]
) -> tuple[tuple[Any, ...], tuple[Step, ...]] | None:
    """The leaf that the argument was made of, and the operations from there on."""
    node, number = given.grad_fn, given.output_nr
    steps: list[Step] = []
    for _ in range(LONGEST):
        if node is None:
            return None
        if (node, number) in nodes:
            return nodes[node, number], tuple(reversed(steps))
        before = [(n, k) for n, k in node.next_functions if n is not None]
        kind = re.sub(r"Backward\d*$", "", node.name())
        step = _step(kind, node, number) if len(before) == 1 else None
        if step is None:
            if _reaches(node, {n for n, _ in nodes}):
                raise NotFollowed(kind)
            return None
        steps.append(step)
        ((node, number),) = before
    if _reaches(node, {n for n, _ in nodes}):
        raise NotFollowed(f"more than {LONGEST} operations")
    return None


def _step(kind: str, node: Any, number: int) -> Step | None:
    try:
        return _READS[kind](node, number)
    except (LookupError, AttributeError):  # another overload keeps other things
        return None


def _reaches(node: Any, wanted: set[Any]) -> bool:
    """Whether the graph leads on to one of these nodes."""
    seen, left = set(), [node]
    while left:
        one = left.pop()
        if one in wanted:
            return True
        if one is not None and one not in seen:
            seen.add(one)
            left += [n for n, _ in one.next_functions]
    return False


# -- what each node tells, and how it is done again ------------------------------------------------

Reads = Callable[[Any, int], Step]


def _signed(value: Any) -> Any:
    """A dimension or an index, which nodes keep without its sign."""
    if isinstance(value, tuple | list):
        return tuple(_signed(v) for v in value)
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _reshaped(node: Any, _: int) -> Step:
    shape = tuple(int(n) for n in node._input_metadata[0].shape)
    return ("reshape", shape[1:]) if shape else ("scalar", ())


def _saved(name: str, *fields: str) -> Reads:
    return lambda node, _: (name, tuple(_signed(getattr(node, f"_saved_{f}")) for f in fields))


def _numbered(name: str, *fields: str) -> Reads:
    """The same of an operation with several results."""
    return lambda node, number: (
        name, (number, *(_signed(getattr(node, f"_saved_{f}")) for f in fields))
    )  # fmt: skip


_READS: dict[str, Reads] = {
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"), _reshaped),
    "Clone": _saved("same"),
    "Alias": _saved("same"),
    "ToCopy": lambda node, _: ("to", (node._input_metadata[0].dtype,)),
    "Transpose": _saved("transpose", "dim0", "dim1"),
    "T": _saved("t"),
    "Permute": _saved("permute", "dims"),
    "Select": _saved("select", "dim", "index"),
    "Slice": _saved("slice", "dim", "start", "end", "step"),
    "Index": _saved("index", "indices"),
    "Split": _numbered("split", "split_size", "dim"),
    "Unbind": _numbered("unbind", "dim"),
    "LogSoftmax": _saved("log_softmax", "dim"),
    "Softmax": _saved("softmax", "dim"),
    "Mean": _saved("mean", "dim", "keepdim"),
    "Sum": _saved("sum", "dim", "keepdim"),
    "Sigmoid": _saved("sigmoid"),
    "Tanh": _saved("tanh"),
    "Relu": _saved("relu"),
    "Exp": _saved("exp"),
}
_REPLAYS: dict[str, Callable[..., Tensor]] = {
    "reshape": lambda x, *rest: x.reshape(-1, *rest),  # of fewer samples, too
    "scalar": lambda x: x.reshape(()),
    "same": lambda x: x,
    "to": lambda x, dtype: x if x.dtype == torch.float64 else x.to(dtype),
    "transpose": torch.transpose,
    "t": torch.t,
    "permute": torch.permute,
    "select": torch.select,
    "slice": lambda x, dim, start, end, step: x[(slice(None),) * dim + (slice(start, end, step),)],
    "index": lambda x, indices: x[tuple(slice(None) if i is None else i for i in indices)],
    "split": lambda x, number, size, dim: torch.split(x, size, dim)[number],
    "unbind": lambda x, number, dim: torch.unbind(x, dim)[number],
    "log_softmax": lambda x, dim: x.log_softmax(dim),
    "softmax": lambda x, dim: x.softmax(dim),
    "mean": lambda x, dim, keepdim: x.mean(dim, keepdim),
    "sum": lambda x, dim, keepdim: x.sum(dim, keepdim),
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "relu", "exp")},
}
