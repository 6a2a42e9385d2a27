"""A fresh copy of a model: the same modules at new random weights, the model itself untouched."""

import copy

import torch
from torch import Tensor, nn

from eqtoolbox.replay.streams import random_streams

_RESETS = ("reset_parameters", "_reset_parameters")  # the second of attention and transformers


def fresh(model: nn.Module, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy whose modules have drawn their weights anew, and the parameters that could not.

    A parameter is drawn anew by `reset_parameters` of its module. Those of modules without one,
    parametrised ones and frozen ones keep the values that they are given.

    Raises:
        ValueError: the model cannot be copied.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> new, kept = fresh(model, seed=1)
        >>> kept, bool((new[0].weight == model[0].weight).any())
        ((), False)
    """
    try:
        new = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"model must be one that copy.deepcopy copies, got {type(model).__name__}: {error}; "
            "leave out what it holds beside modules, parameters and plain values"
        ) from error
    before = {name: (p._version, _value(p)) for name, p in new.named_parameters()}
    frozen = {id(p) for p in new.parameters() if not p.requires_grad}
    with random_streams(), torch.no_grad():
        torch.manual_seed(seed)
        for module in new.modules():
            own = list(module.parameters(recurse=False))
            reset = next((getattr(module, r) for r in _RESETS if hasattr(module, r)), None)
            if callable(reset) and not any(id(p) in frozen for p in own):
                reset()
    kept = [
        name
        for name, p in new.named_parameters()
        if p._version == before[name][0] and torch.equal(p, before[name][1])
    ]
    return new, tuple(kept)


def _value(p: Tensor) -> Tensor:
    return p.detach().clone()
