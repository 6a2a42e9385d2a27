"""Precision: in which floating-point type a loss is computed, whatever it asks for itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from eqtoolbox.replay.modes import unheard
from eqtoolbox.replay.thread.tables import live
from eqtoolbox.replay.thread.unmixed import unmixed
from eqtoolbox.replay.widened import widened


@contextmanager
def computing(dtype: torch.dtype | None, mixed: bool, model: nn.Module) -> Iterator[None]:
    """Scope of a type; None for that of the training.

    Args:
        mixed: whether autocasts that loss and model enter by themselves act.
        model: whose parameters have the type that random numbers are drawn in.
    """
    with ExitStack() as scope:
        if dtype == torch.float64:
            with unheard():  # what an evaluation exchanges for them is float64 already
                every = (p for m in model.modules() for p in live(m._parameters).values())
                found = {p.dtype for p in every if p is not None}  # asked else, they are widened
                trained = {dtype for dtype in found if dtype.is_floating_point}
            narrowest = min(trained, key=lambda one: one.itemsize, default=torch.float32)
            scope.enter_context(widened(narrowest))
        if dtype is not None or not mixed:
            scope.enter_context(unmixed())
        yield
