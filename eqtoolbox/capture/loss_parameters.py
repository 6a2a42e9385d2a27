"""Loss parameters: tensors that a loss uses and its model has not, at the values of their step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eqtoolbox.replay.gradients import required


@dataclass(frozen=True, kw_only=True)
class LossParameters:
    """Live tensors of a loss by name, such as uncertainty weights, and what they were.

    A loss finds them wherever it likes, in a module, a closure or a global: they are exchanged
    where an operation is given them, by identity.
    """

    live: dict[str, Tensor]
    held: dict[str, Tensor]  # detached clones; of those that are missing the live one counts

    def swapped(
        self, params: Mapping[str, Tensor], cast: Callable[[Any], Any]
    ) -> AbstractContextManager[Any]:
        """Scope in which each is `params[name]`, or else the `cast` of what it was."""
        held = {n: cast(t) for n, t in self.held.items() if n not in params}
        found = [(t, params.get(n, held.get(n))) for n, t in self.live.items()]
        pairs = {id(live): required(t, live) for live, t in found if t is not None}
        return Exchanged(pairs) if pairs else nullcontext()


class Exchanged(TorchFunctionMode):
    """Gives operations other tensors than they were called with, by the identity of these."""

    def __init__(self, pairs: dict[int, Tensor]) -> None:
        super().__init__()
        self._pairs = pairs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._exchange(args), **(self._exchange(kwargs) if kwargs else {}))

    def _exchange(self, given: Any) -> Any:
        kind = type(given)
        if kind is tuple or kind is list:
            return kind(self._exchange(x) for x in given)
        if kind is dict:
            return {key: self._exchange(x) for key, x in given.items()}
        return self._pairs.get(id(given), given)


def leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """The leaf tensors that the graph of a loss ends in."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        waiting.extend(inner for inner, _ in node.next_functions)


def clones(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies."""
    with torch.no_grad():
        return {name: t.detach().clone() for name, t in live.items()}
