"""Isolation: a scope in which a model can be called without leaving a trace on the run.

Everything a probe might move is put back on exit: the torch, CUDA, numpy and python random
states, and every attribute of every submodule (training flags, hooks, counters). Parameters and
buffers are never swapped here: probes evaluate the model at clones (`eqtoolbox.snapshot`).
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from eqtoolbox.derivatives import twice_differentiable

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


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
def isolated(*modules: nn.Module) -> Iterator[None]:
    """Scope in which `modules` may be called freely: no user hook fires and nothing stays changed.

    Hooks that belong to torch itself stay (old-style weight and spectral normalisation and
    pruning compute their weight in one). Gradients are enabled whatever the caller's mode;
    autocast is off, so that probes measure in the parameters' own precision; operations without a
    second derivative are exchanged (`eqtoolbox.derivatives`).
    """
    everything = {id(m): m for module in modules for m in module.modules()}.values()
    before = [(m, dict(m.__dict__)) for m in everything]
    with ExitStack() as scope:
        scope.callback(_restore_attributes, before)
        for module, attributes in before:
            for name in _HOOKS:
                if attributes.get(name):
                    module.__dict__[name] = _only_torch(attributes[name])
            if (
                "_original_forward" in attributes
            ):  # Accelerate's patch: autocast that cannot be left
                module.__dict__["forward"] = attributes["_original_forward"]
        scope.enter_context(random_streams())
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.enable_grad())
        for device in {"cpu"} | ({"cuda"} if _cuda() else set()):
            scope.enter_context(torch.autocast(device, enabled=False))
        scope.enter_context(twice_differentiable(modules))
        yield


def _only_torch(hooks: "OrderedDict[int, Any]") -> "OrderedDict[int, Any]":
    """The hooks defined inside torch: part of the function, not of the user's bookkeeping."""

    def module_of(hook: Any) -> str:
        owner = getattr(hook, "__self__", hook)
        return str(getattr(owner, "__module__", None) or type(owner).__module__)

    return OrderedDict(
        (key, h) for key, h in hooks.items() if module_of(h).split(".", 1)[0] == "torch"
    )


def _restore_attributes(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, attributes in before:
        for name in module.__dict__.keys() - attributes.keys():
            del module.__dict__[name]
        module.__dict__.update(attributes)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule; flags come back one by one, frozen layers included."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training
