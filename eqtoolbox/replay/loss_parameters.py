"""Loss parameters: tensors that a loss uses and its model has not, at the values of their step."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eqtoolbox.replay.gradients import required
from eqtoolbox.replay.thread.scope import current, unobserved


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
        with unobserved():
            found = {
                n: params[n] if n in params else as_trained(self.held.get(n), live, cast)
                for n, live in self.live.items()
            }
            kept = {n: t for n, t in found.items() if t is not None}
            pairs = {id(self.live[n]): required(t, self.live[n]) for n, t in kept.items()}
        return ExchangedParameters(pairs) if pairs else nullcontext()


class ExchangedParameters(TorchFunctionMode):
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


def as_trained(held: Tensor | None, live: Tensor, cast: Callable[[Any], Any]) -> Tensor | None:
    """As the loss found it, with its gradient; None where the live one is just that."""
    replay = current()
    if replay is not None and replay.keeps(live):
        held = live.detach()
        if cast(held) is held:
            return None
    found: Tensor | None = cast(held)
    if replay is not None and found is not None:
        found = required(found, live)
        found.grad = None if live.grad is None else cast(live.grad)
    return found


def clones(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies."""
    with torch.no_grad():
        return {name: t.detach().clone() for name, t in live.items()}
