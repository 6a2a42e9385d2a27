"""A call: how a loss calls its model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.modes import unheard
from eqtoolbox.replay.thread.scope import only_here, place
from eqtoolbox.replay.tree import map_tensors, tensors


@dataclass(frozen=True)
class Call:
    """The first call of the model inside the loss: its arguments, as given, and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    loss: Tensor | None = None  # what the loss came to, scalar
    times: int = 1  # how often the loss called the model


def first_call(loss_of: Callable[[nn.Module], Tensor], model: nn.Module) -> Call:
    """The first call of `model` that its loss makes, its output and what the loss came to.

    Raises:
        LookupError: the loss never calls the model itself.
    """
    calls: list[Call] = []
    given: list[_Given] = []  # before hooks of the user's change them

    def take(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(_Given((args, kwargs)))

    def note(_: nn.Module, __: Any, output: Any) -> None:
        args, kwargs = given.pop().as_given()
        if any(map(_transformed, tensors(output))):
            raise LookupError(
                "the loss calls the model inside a transformation of torch.func: data "
                "symmetries need a call of the model itself"
            )
        calls.append(Call(args, kwargs, output))

    handles = (
        model.register_forward_pre_hook(only_here(take), with_kwargs=True, prepend=True),
        model.register_forward_hook(only_here(note)),
    )
    try:
        loss = loss_of(model)
    finally:
        for handle in handles:
            handle.remove()
    if not calls or not (calls[0].args or calls[0].kwargs):
        raise LookupError(
            "the loss never calls the model as model(inputs): data symmetries need that call"
        )
    return replace(calls[0], loss=loss, times=len(calls))


class _Given:
    """Arguments of a call, and copies of them, as the model may write into what it is given."""

    def __init__(self, arguments: Any) -> None:
        self._arguments = arguments
        self._tensors = tensors(arguments)
        self._versions = _versions(self._tensors)
        with unheard(), torch.inference_mode(False):
            self._copies = map_tensors(copied, arguments)

    def as_given(self) -> Any:
        """The arguments themselves, their copies where the call has changed one."""
        now = tensors(self._arguments)
        same = len(now) == len(self._tensors) and all(map(is_, now, self._tensors))
        return self._arguments if same and _versions(now) == self._versions else self._copies


def _versions(given: list[Tensor]) -> list[int]:
    return [x._version for x in given if not x.is_inference()]


def copied(x: Tensor) -> Tensor:
    """A leaf of the same values, for a model that may write into it; itself if transformed."""
    return x if _transformed(x) else x.detach().clone().requires_grad_(x.requires_grad)


def _transformed(tensor: Tensor) -> bool:
    """Whether it means something inside a transformation of torch.func only."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


@contextmanager
def moving_inputs(model: nn.Module, move: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Scope in which the model gets its first floating-point argument moved, in this thread."""

    def moved(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        floating = [isinstance(x, Tensor) and x.is_floating_point() for x in args]
        first = floating.index(True) if any(floating) else len(args)
        return tuple(move(x) if k == first else x for k, x in enumerate(args))

    handle = model.register_forward_pre_hook(only_here(moved), prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def answering(model: nn.Module, output: Any) -> Iterator[None]:
    """Scope in which the model answers `output` whatever its input, in this thread."""
    own = {k: v for k, v in model.__dict__.items() if k == "forward"}
    here, live = place(), model.forward
    model.__dict__["forward"] = lambda *given, **named: (
        output if place() == here else live(*given, **named)
    )
    try:
        yield
    finally:
        model.__dict__.pop("forward")
        model.__dict__.update(own)
