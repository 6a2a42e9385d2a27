"""Second derivatives: what cuts or lacks them in torch is exchanged for this thread.

Each of these would fail, or give wrong Hessian products without a word (torch 2.13).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from eqtoolbox.replay.checkpoints import just_run_reentrant
from eqtoolbox.replay.operations import Operations


@contextmanager
def twice_differentiable(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Scope in which calls of `modules` can be differentiated twice.

    Attention runs on its mathematical kernel, and reentrant checkpoints, which cut the graph, just
    run. cuDNN's recurrent kernels are off where a recurrent layer is on a GPU: the only switch that
    other threads notice.
    """
    with ExitStack() as scope:
        scope.enter_context(Operations())
        scope.enter_context(just_run_reentrant())
        if any(_recurrent_on_gpu(m) for module in modules for m in module.modules()):
            scope.enter_context(_without_cudnn())
        yield


def _recurrent_on_gpu(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters())


@contextmanager
def _without_cudnn() -> Iterator[None]:
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
