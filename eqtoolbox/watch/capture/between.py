"""Between: what a training loop does to a model's output before the criterion sees it.

Read off the graph that autograd recorded: `criterion(model(x).squeeze(1) / T, y)` leaves two nodes
between output and argument. Nothing has to run inside the loop's own code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from eqtoolbox.replay.reading import opened
from eqtoolbox.watch.capture.redone import REPLAYS, Step, constant, earlier, kind, passed, step

LONGEST = 16  # operations that are followed
ROUNDED = 64.0  # roundings of the largest entry that what was made again may be off


class NotFollowed(Exception):
    """What happened to an output cannot be done again; says which operation it was."""


@dataclass(frozen=True)
class Between:
    """From what the model returns to one argument of the criterion.

    An operation of two tensors that both come from the output has the way of the second among what
    it is given.

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
        """How `given` was made of the output, or of what was `Answered`; None where it was not.

        Raises:
            NotFollowed: it was, but not by operations that can be done again.
        """
        answered = output if isinstance(output, Answered) else Answered(output)
        made = answered.way(given)
        if made is None or not made.steps:
            return made
        with torch.no_grad():
            again = made(answered.output)
        if not same(again, given.detach()):
            raise NotFollowed("writing into it")
        return made

    def __call__(self, output: Any) -> Tensor:
        found: Any = output
        for key in self.path:
            found = _opened(found)[key]
        if not self.path and not isinstance(found, Tensor):
            ((_, found),) = _leaves(output)
        for name, given in self.steps:
            others = [x(output) if isinstance(x, Between) else x for x in given]
            found = REPLAYS[name](found, *others)
        return found  # type: ignore[no-any-return]


class Answered:
    """What a model returned, as it was when it did: a loop may write into it afterwards."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self._sources = {path: leaf for path, leaf in _leaves(output) if leaf.requires_grad}
        self._nodes = {(x.grad_fn, x.output_nr): path for path, x in self._sources.items()}
        self._versions = {path: x._version for path, x in self._sources.items()}

    def way(self, given: Tensor) -> Between | None:
        """How `given` was made; see `Between.of`."""
        for path, leaf in self._sources.items():
            if leaf is given or (given.is_leaf == leaf.is_leaf and _aliases(leaf, given)):
                self._refuse_written(path)
                return Between(path, ())
        reader = Redoer(self.output, self._nodes)
        if not reader.reaches(given.grad_fn):
            return None
        found = reader.way(given.grad_fn, given.output_nr, given.detach())
        for path in () if found is None else (found.path,):
            self._refuse_written(path)
        return found

    def _refuse_written(self, path: tuple[Any, ...]) -> None:
        if self._sources[path]._version != self._versions[path]:
            raise NotFollowed("writing into it")


class Redoer:
    """Goes from a node of the tape back to an output."""

    def __init__(self, output: Any, nodes: dict[tuple[Any, int], tuple[Any, ...]]) -> None:
        self._output, self._nodes, self._left = output, nodes, LONGEST

    def way(self, node: Any, number: int, value: Tensor | None) -> Between | None:
        """The operations from the output to a node, whose result was `value` if that is known."""
        node, number = passed(node, number)
        if node is None:
            return None
        if (node, number) in self._nodes:
            return Between(self._nodes[node, number], ())
        self._left -= 1
        if self._left < 0:
            raise NotFollowed(f"more than {LONGEST} operations")
        live = [k for k, (n, _) in enumerate(node.next_functions) if n is not None]
        ways: dict[int, Between] = {}
        for k in live:
            before, of = node.next_functions[k]
            way = self.way(before, of, earlier(node, k, value))
            if way is not None:
                ways[k] = way
        if not ways:
            return None
        if len(ways) < len(live):  # something else that is trained is in it
            raise NotFollowed(kind(node))
        return self._step(node, number, value, ways)

    def _step(
        self, node: Any, number: int, value: Tensor | None, ways: dict[int, Between]
    ) -> Between:
        """The way through one more operation."""
        first = ways[min(ways)]
        made = None
        if len(ways) == 1:
            made = step(node, number)
            if made is None and value is not None:
                with torch.no_grad():
                    made = constant(node, first(self._output).detach(), value)
        elif len(ways) == 2:
            made = step(node, number, ways[max(ways)])
        if made is None:
            raise NotFollowed(kind(node))
        return Between(first.path, (*first.steps, made))

    def reaches(self, node: Any) -> bool:
        """Whether the graph leads on to an output."""
        wanted, seen, left = {n for n, _ in self._nodes}, set(), [node]
        while left:
            one = left.pop()
            if one in wanted:
                return True
            if one is not None and one not in seen:
                seen.add(one)
                left += [n for n, _ in one.next_functions]
        return False


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


def _aliases(x: Tensor, y: Tensor) -> bool:
    """Whether it is the same tensor; hooks of modules hand on aliases."""
    alike = x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
    return alike and x.numel() > 0 and x.data_ptr() == y.data_ptr()


def same(again: Tensor, given: Tensor) -> bool:
    """Whether it is the same but for the rounding of constants that were read off results."""
    if again.shape != given.shape or again.dtype != given.dtype:
        return False
    one, two = again.nan_to_num(), given.nan_to_num()
    if torch.equal(one, two) or not one.is_floating_point():
        return torch.equal(one, two)
    allowed = ROUNDED * torch.finfo(one.dtype).eps * float(two.abs().max())
    return float((one - two).abs().max()) <= allowed
