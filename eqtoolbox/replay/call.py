"""A call: how a loss calls its model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.thread.scope import only_here, place
from eqtoolbox.replay.tree import tensors


@dataclass(frozen=True)
class Call:
    """The first call of the model inside the loss: its arguments and its output."""

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
    given: list[tuple[Any, Any]] = []  # before hooks of the user's change them

    def take(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    def note(_: nn.Module, __: Any, output: Any) -> None:
        args, kwargs = given.pop()
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
