"""Isolation: a scope in which a model can be called without leaving a trace on the run.

Everything a probe might move is put back on exit: the torch, CUDA, numpy and python random
states, and every attribute of every submodule (training flags, hooks, counters). Parameters and
buffers are never swapped here: probes evaluate the model at clones (`eqtoolbox.snapshot`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from eqtoolbox.capture.guests import guests, restore_attributes, set_apart
from eqtoolbox.derivatives import twice_differentiable


class RandomState:
    """The state of every random stream a training loop draws from."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda() else []
        self.numpy = np.random.get_state()  # noqa: NPY002 - the global stream is the point
        self.python = random.getstate()

    @classmethod
    def seeded(cls, seed: int) -> "RandomState":
        """The state after seeding every stream with `seed`; the streams themselves do not move."""
        with random_streams():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            return cls()

    def restore(self) -> None:
        """Put all streams back to this state."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def _cuda() -> bool:
    """Whether CUDA is in use already; asking for its random state would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def random_streams(start: RandomState | None = None) -> Iterator[None]:
    """Run the body from the random state `start` and put the streams back afterwards."""
    outside = RandomState()
    if start is not None:
        start.restore()
    try:
        yield
    finally:
        outside.restore()


@contextmanager
def isolated(*modules: nn.Module, expected: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Scope in which `modules` may be called freely: no user hook fires and nothing stays changed.

    Hooks that belong to torch itself stay (old-style weight and spectral normalisation and
    pruning compute their weight in one). Other modules that are called meanwhile are protected
    too, their buffers included (`eqtoolbox.capture.guests`). Gradients are enabled whatever the
    caller's mode; autocast is off, so that probes measure in the parameters' own precision;
    operations without a second derivative are exchanged (`eqtoolbox.derivatives`).
    """
    everything = {id(m): m for module in modules for m in module.modules()}.values()
    before = [(m, dict(m.__dict__)) for m in everything]
    with ExitStack() as scope:
        for module, attributes in before:
            scope.callback(restore_attributes, module, attributes)
            set_apart(module, attributes)
            if "_original_forward" in attributes:  # Accelerate's: an autocast that cannot be left
                module.__dict__["forward"] = attributes["_original_forward"]
        scope.enter_context(guests(*modules, expected=expected))
        scope.enter_context(random_streams())
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.enable_grad())
        for device in {"cpu"} | ({"cuda"} if _cuda() else set()):
            scope.enter_context(torch.autocast(device, enabled=False))
        scope.enter_context(twice_differentiable(modules))
        yield


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule; flags come back one by one, frozen layers included."""
    with flagged(module, (False,) * len(list(module.modules()))):
        yield


@contextmanager
def flagged(module: nn.Module, flags: Sequence[bool]) -> Iterator[None]:
    """Training flags of all submodules in order; as they are where `flags` is empty."""
    before = [(m, m.training) for m in module.modules()] if flags else []
    try:
        for (m, _), training in zip(before, flags, strict=False):
            m.training = training
        yield
    finally:
        for m, training in before:
            m.training = training
