"""Isolation: a scope in which a model can be called without leaving a trace on the run.

Whatever the model and its loss can reach is put back on exit (`eqtoolbox.replay`): attributes,
containers, plain tensors, generators, the global random streams, tensors of the training. Forward
hooks of the user act as they do in the training, and no other thread notices.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from eqtoolbox.replay.calls import every_call, global_hooks, uncompiled
from eqtoolbox.replay.collectives import no_exchanges
from eqtoolbox.replay.derivatives import twice_differentiable
from eqtoolbox.replay.outside import no_processes
from eqtoolbox.replay.replay import Replay
from eqtoolbox.replay.streams import RandomState, alone, cuda_started, random_streams
from eqtoolbox.replay.synced import synced
from eqtoolbox.replay.thread.flags import shown
from eqtoolbox.replay.thread.listening import seeds_announced
from eqtoolbox.replay.thread.quiet import quiet
from eqtoolbox.replay.thread.scope import current, inside, unobserved
from eqtoolbox.replay.thread.threads import followed

__all__ = ["RandomState", "evaluation", "flagged", "isolated", "random_streams"]


@contextmanager
def isolated(
    *modules: nn.Module,
    expected: Iterable[Any] = (),
    thorough: bool = False,
    draws: bool = True,
) -> Iterator[None]:
    """Scope in which `modules` may be called freely: forward hooks act, nothing stays changed.

    Hooks that belong to torch itself stay (old-style weight and spectral normalisation and
    pruning compute their weight in one). Gradients are enabled whatever the caller's mode;
    autocast is off, so that probes measure in the parameters' own precision; operations without a
    second derivative are exchanged (`eqtoolbox.replay.operations`).

    Args:
        modules: that are called with exchanged parameters and buffers.
        expected: what else the evaluations use, such as a loss function.
        thorough: meet modules, too, that are called although no walk has found them.
        draws: False where it is known that nothing draws from NumPy's or Python's streams.

    Raises:
        LeavesTrace: something in reach would not be as it was; says what.
    """
    replay = current()
    if replay is not None:
        replay.widen((*modules, *expected))
        yield
        return
    with unobserved():
        replay = Replay(modules, expected, draws)
    with ExitStack() as scope:
        scope.callback(replay.end)
        scope.enter_context(inside(replay))
        scope.enter_context(uncompiled())
        scope.enter_context(synced())
        scope.enter_context(quiet())
        scope.enter_context(followed())
        scope.enter_context(no_processes())
        scope.enter_context(no_exchanges())
        scope.enter_context(seeds_announced())
        if thorough or global_hooks():
            scope.enter_context(every_call())
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.enable_grad())
        for device in {"cpu"} | ({"cuda"} if cuda_started() else set()):
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
    """Training flags of all submodules in order; as they are where `flags` is empty.

    Other threads that call them meanwhile find them as they were.
    """
    before = [(m, m.training) for m in module.modules()] if flags else []
    other = {id(m): f for (m, now), f in zip(before, flags, strict=False) if f != now}
    try:
        if other and not alone():
            with shown(other):
                yield
            return
        for (m, _), training in zip(before, flags, strict=False):
            m.training = training
        yield
    finally:
        for m, training in before:
            m.training = training
