"""Gradients of large models: one backward, parameter by parameter, nothing held for longer."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from eqtoolbox.replay.heap import give_back
from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import unobserved

_PAGES = 2**24  # entries of gradients after which what they took goes back to the system
_TOGETHER = 2**18  # entries of gradients that are received together
_ENTERED = Intercepted(("torch.autograd.graph", "saved_tensors_hooks"), "__enter__")
_HOOKED = Intercepted(("torch", "Tensor"), "register_hook")
Receive = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]


class Awaited:
    """A value whose gradient is still to come, parameter by parameter; nothing is held for longer.

    Where something else may read parameters (checkpoints, functions of the user's own), they stay.
    Until then nobody may write over them.

    Args:
        names: of the parameters.
        made: name -> parameter, the same each time.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], Tensor],
        names: Sequence[str],
        made: Callable[[str], Tensor],
    ) -> None:
        give_back()
        self._made = made
        self._leaves = self._fresh(names)
        self._kept = {n: leaf.detach() for n, leaf in self._leaves.items()}
        each = self._leaves.items()
        owners = {leaf.untyped_storage().data_ptr(): n for n, leaf in each if leaf.numel()}
        self._read: set[str] = set()  # by the backward

        def packed(tensor: Tensor) -> Tensor:
            owner = owners.get(tensor.untyped_storage().data_ptr())
            if owner is not None:
                self._read.add(owner)
            return tensor

        refused = False
        try:
            with saved_tensors_hooks(packed, lambda saved: saved), _reading_later() as others:
                self._value = function(self._leaves)
            self._stay = bool(others) or _own_functions(self._value)
        except RuntimeError:  # derivatives of torch.func suffer no such hooks
            refused = True
        if refused:  # what fails for another reason does so again, and is told
            self._leaves = self._fresh(names)
            self._value = function(self._leaves)
            self._stay, self._read = True, set(names)

    def _fresh(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {n: self._made(n).detach().requires_grad_() for n in names}

    def backward(
        self,
        receive: Receive,
        wanted: Collection[str] | None = None,
        release: Callable[[str], None] = lambda _: None,
        seen: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Calls receive(parameters, gradients) as they come, large ones alone; only once.

        A parameter is held until the backward has read it last, a gradient until it is received.

        Args:
            wanted: whose gradients to compute; None: of all.
            release: told of parameters that are not held any more.
            seen: name -> parameter, of whatever type, for `receive` where none is held.
        """
        give_back()  # what was freed since
        leaves, kept, again = self._leaves, self._kept, seen or self._made
        asked = {n: leaf for n, leaf in leaves.items() if wanted is None or n in wanted}
        arrived: set[str] = set()
        waiting: dict[str, tuple[Tensor, Tensor]] = {}
        freed = 0

        @unobserved()
        def let_go(name: str) -> None:
            if not self._stay:  # a reader nobody thought of finds nan, not old numbers
                del kept[name]
                leaves[name].data = leaves[name].new_full((), torch.nan).expand(leaves[name].shape)
                release(name)

        def receive_waiting() -> None:
            if waiting:
                params, gradient = ({n: x[k] for n, x in waiting.items()} for k in (0, 1))
                waiting.clear()
                receive(params, gradient)

        def hand_over(name: str, gradient: Tensor) -> Tensor:
            nonlocal freed
            arrived.add(name)
            waiting[name] = kept[name] if name in kept else again(name), gradient
            if sum(g.numel() for _, g in waiting.values()) >= _TOGETHER:
                receive_waiting()
            if name in kept:
                let_go(name)
            freed += gradient.numel()
            if freed >= _PAGES:
                freed = 0
                give_back()
            return gradient.new_zeros(()).expand(gradient.shape)  # nothing is left to keep

        for name in leaves.keys() - self._read:
            let_go(name)
        if self._value.requires_grad and asked:
            for name, leaf in asked.items():
                leaf.register_hook(partial(hand_over, name))  # type: ignore[no-untyped-call]
            torch.autograd.grad(self._value, list(asked.values()), allow_unused=True)
        receive_waiting()
        for name in asked.keys() - arrived:
            receive({name: again(name)}, {name: torch.zeros_like(leaves[name])})
        leaves.clear()  # which their hooks refer to
        del self._value


def streamed(
    function: Callable[[dict[str, Tensor]], Tensor],
    names: Sequence[str],
    made: Callable[[str], Tensor],
    receive: Receive,
    wanted: Collection[str] | None = None,
    release: Callable[[str], None] = lambda _: None,
    seen: Callable[[str], Tensor] | None = None,
) -> None:
    """The gradient of a function at once: see `Awaited`."""
    Awaited(function, names, made).backward(receive, wanted, release, seen)


@contextmanager
def _reading_later() -> Iterator[list[object]]:
    """What may read parameters in the backward and is entered meanwhile.

    Hooks on saved tensors, as of checkpoints, and hooks on tensors.
    """
    entered: list[object] = []

    def noted(original: Any, one: Any, *given: Any) -> Any:
        entered.append(one)
        return original(one, *given)

    with _ENTERED.answered_by(noted), _HOOKED.answered_by(noted):
        yield entered


def _own_functions(value: Tensor) -> bool:
    """Whether the graph holds a function written in Python, which may keep what it likes."""
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        waiting += [following for following, _ in node.next_functions]
    return False
