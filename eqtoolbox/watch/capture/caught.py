"""Caught: one loss of a step, and which weight its backward gave it."""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace as fx

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.linalg.vectors import wide
from eqtoolbox.replay.eager import recorded
from eqtoolbox.replay.objective import Objective
from eqtoolbox.replay.scalar import loss_tensor
from eqtoolbox.watch.capture.backward import Key


class Hook:
    """A hook of one module that does not keep its owner alive; on any other module it is inert.

    The owner has a `stopwatch` for the time its methods take, and is told by `fail` of errors.
    Copies and pickles are inert, too.
    """

    training_only = True  # replays do not call it

    def __init__(self, owner: Any = None, method: str = "", module: Any = None) -> None:
        self._owner = weakref.ref(owner) if owner is not None else lambda: None
        self._method = method
        self._module = weakref.ref(module) if module is not None else lambda: None

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if traced():  # away: what comes out is the program that it would be without
            return
        owner = self._owner()
        if owner is not None and module is self._module():
            try:
                with owner.stopwatch:
                    getattr(owner, self._method)(module, *args)
            except BaseException as error:
                owner.fail(error)

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook()

    def __reduce__(self) -> Any:
        return Hook, ()


def in_transform() -> bool:
    """Whether what runs is inside a transform of torch.func."""
    return torch._C._functorch.maybe_current_level() is not None


def traced() -> bool:
    """Whether the module runs to be compiled, exported or recorded."""
    compiled = torch.compiler.is_compiling() or torch._C._is_tracing() or fx._is_fx_tracing_flag
    return compiled or recorded()


class Caught:
    """One evaluation of the loss.

    `weight` is dL/dL_i of the whole backward that reached it, so that the gradient of the step is
    sum_i weight_i grad L_i whatever the loop divided or multiplied its losses by; None while no
    backward did.
    """

    def __init__(
        self, objective: Objective, value: Tensor | None = None, weight: float | None = None
    ) -> None:
        self.objective = objective
        self.value = value  # as the training loop saw it
        self.weight: Tensor | float | None = weight
        self.used = False  # whether an optimizer stepped by it, of several
        self.started = False  # whether random state and buffers are those of its own forward
        self.handle: Any = None
        self.node: Key | None = None  # of the tape, whose loss it is
        self.thread = threading.get_ident()

    def release(self) -> None:
        """Take the hook off the loss."""
        if self.handle is not None:
            self.handle.remove()


class Arrived:
    """A tensor hook that tells which gradient arrived at a loss; keeps neither side alive."""

    def __init__(self, capture: Any, caught: Caught) -> None:
        self._capture = weakref.ref(capture)
        self._caught = weakref.ref(caught)

    def __call__(self, gradient: Tensor) -> None:
        capture, caught = self._capture(), self._caught()
        if capture is not None and caught is not None:
            try:
                with capture.stopwatch:
                    capture.pending.reached(caught, gradient)
            except BaseException as error:
                capture.fail(error)


@dataclass
class Numbers:
    """What is left of a caught loss where nobody evaluates it again: its numbers."""

    value: Tensor | None
    weight: Tensor | float | None


C = TypeVar("C", Caught, Numbers)


def weighted(
    losses: Sequence[C], scale: float = 1.0, summed: bool = False
) -> list[tuple[C, float]]:
    """Losses that a backward reached, with their weights; the scale of a scaler divided out.

    Where no backward was seen (batches given by `observe`, or a function that runs the backward
    itself) all losses count equally: their mean is taken, or their sum.
    """
    told = reached(losses)
    if told:
        found = zip(told, numbers([c.weight for c in told]), strict=True)  # type: ignore[misc]
        return [(c, w / scale) for c, w in found if w != 0.0]
    given = [(c, float(c.weight)) for c in losses if c.weight is not None]
    if len(given) == len(losses):
        return given
    return [(c, 1.0 if summed else 1 / len(losses)) for c in losses]


def reached(losses: Sequence[C]) -> list[C]:
    """Those that a backward reached, as far as it was seen."""
    return [c for c in losses if isinstance(c.weight, Tensor)]


def sent(losses: Sequence[Caught], parcel: Parcel) -> Callable[[], list[Numbers]] | None:
    """The numbers of losses, which go to the host with a parcel: call it when that has arrived.

    None where they are of no plain kind.
    """
    held = [t for c in losses for t in (c.value, c.weight) if isinstance(t, Tensor)]
    if any(type(t) is not Tensor or t.is_complex() or t.numel() != 1 for t in held):
        return None

    def add(number: Any) -> Callable[[], Any]:
        if not isinstance(number, Tensor):
            return lambda: number
        return parcel.add(number.detach().reshape(()))

    each = [(add(c.value), add(c.weight)) for c in losses]
    return lambda: [Numbers(value(), weight()) for value, weight in each]


def numbers(given: Sequence[Tensor]) -> list[float]:
    """What tensors of one entry hold, in one question to the device."""
    if any(type(t) is not Tensor or t.is_complex() for t in given):
        return [float(t) for t in given]
    each = [wide(t.detach()).reshape(()) for t in given]
    told: list[float] = torch.stack([t.to(each[0].device) for t in each]).tolist()
    return told


def guessed(losses: Sequence[Caught]) -> bool:
    """Whether the weights of several losses are not known."""
    return len(losses) > 1 and all(c.weight is None for c in losses)


def loss_of(result: Any) -> Tensor | None:
    """The scalar in what a loss function returned; None where there is none."""
    try:
        return loss_tensor(result)
    except TypeError:
        return None
