"""Gradients of large models: one backward, parameter by parameter, the weights made anew for it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.weights.search.memory import give_back

_ENTERED = Intercepted(("torch.autograd.graph", "saved_tensors_hooks"), "__enter__")
Receive = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]


def streamed(
    function: Callable[[dict[str, Tensor]], Tensor],
    names: Sequence[str],
    made: Callable[[str], Tensor],
    receive: Receive,
    wanted: Collection[str] | None = None,
) -> None:
    """Calls receive({name: parameter}, {name: gradient}) for every parameter, as they come.

    What the graph saves of a parameter is its name: between forward and backward no parameter is
    held. Where something else may read them then (checkpoints, functions of the user's own), they
    stay.

    Args:
        names: of the parameters.
        made: name -> parameter, the same each time.
        wanted: whose gradients to compute; None: of all.
    """
    give_back()
    remade = _Last(made)
    leaves = {n: made(n).detach().requires_grad_() for n in names}
    kept = {n: leaf.detach() for n, leaf in leaves.items()}
    owners = {leaf.untyped_storage().data_ptr(): n for n, leaf in leaves.items() if leaf.numel()}

    def packed(tensor: Tensor) -> Any:
        owner = owners.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            return tensor
        return owner, tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpacked(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        owner, *layout = saved
        return (kept[owner] if owner in kept else remade(owner)).as_strided(*layout)

    with saved_tensors_hooks(packed, unpacked), _counted_hooks() as others:
        value = function(leaves)
    arrived: set[str] = set()

    def hand_over(name: str, gradient: Tensor) -> Tensor:
        arrived.add(name)
        receive(_Made(name, remade), {name: gradient})
        give_back(gradient.numel())
        return gradient.new_zeros(()).expand(gradient.shape)  # nothing is left to keep

    asked = {n: leaf for n, leaf in leaves.items() if wanted is None or n in wanted}
    if value.requires_grad and asked:
        for name, leaf in asked.items():
            leaf.register_hook(partial(hand_over, name))  # type: ignore[no-untyped-call]
        if not others and not _own_functions(value):
            kept.clear()
            for leaf in leaves.values():  # a reader nobody thought of finds nan, not old numbers
                leaf.data = leaf.new_full((), torch.nan).expand(leaf.shape)
            give_back()
        torch.autograd.grad(value, list(asked.values()), allow_unused=True)
    for name in asked.keys() - arrived:
        receive(_Made(name, made), {name: torch.zeros_like(made(name))})


class _Last:
    """The parameter made last: a backward needs it twice, for what is before it and for itself."""

    def __init__(self, made: Callable[[str], Tensor]) -> None:
        self._make = made
        self._name: str | None = None
        self._made: Tensor | None = None

    def __call__(self, name: str) -> Tensor:
        if name != self._name or self._made is None:
            self._made = None  # before the next is made
            self._name, self._made = name, self._make(name)
        return self._made


class _Made(Mapping[str, Tensor]):
    """One parameter, made when it is looked at."""

    def __init__(self, name: str, made: Callable[[str], Tensor]) -> None:
        self._name, self._make = name, made

    def __getitem__(self, name: str) -> Tensor:
        if name != self._name:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter((self._name,))

    def __len__(self) -> int:
        return 1


@contextmanager
def _counted_hooks() -> Iterator[list[object]]:
    """Hooks on saved tensors that others enter meanwhile, as checkpoints do."""
    entered: list[object] = []

    def noted(enter: Any, hooks: saved_tensors_hooks) -> None:
        entered.append(hooks)
        enter(hooks)

    with _ENTERED.answered_by(noted):
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
