"""Gradients: a function of the user's is always called with them on, whoever asks for its value.

Losses and models differentiate inside: residuals of equations, penalties on gradients, forces,
inner steps of learning. What comes out is free of a graph where the caller records none.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from eqtoolbox.replay.modes import unheard
from eqtoolbox.replay.operations import by_kernels
from eqtoolbox.replay.tree import map_tensors, tensors
from eqtoolbox.replay.unsaved import plain, unsaved

Made = TypeVar("Made")


def valued(function: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """`function(*args, **kwargs)` as the user's own loop would get it.

    Returns:
        What it returned; where the caller records no gradients, in new containers and without a
        graph, for which nothing is saved where a replay has shown that nothing asks for it.

    Example:
        >>> def slope(x):
        ...     x = x.clone().requires_grad_()
        ...     return torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]
        >>> with torch.no_grad():
        ...     valued(slope, torch.ones(2))
        tensor([2., 2.])
    """
    if differentiated():
        return function(*args, **kwargs)
    with torch.inference_mode(False), torch.enable_grad():
        evaluate = partial(by_kernels, function, *args, **kwargs)
        made = unsaved(evaluate, tensors((args, kwargs))) if plain() else evaluate()
    found: Made = map_tensors(_freed, made)
    return found


def differentiated() -> bool:
    """Whether what is evaluated here may be differentiated by the caller."""
    recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return recorded or in_forward_mode()


def in_forward_mode() -> bool:
    """Whether a derivative of torch.func is on its way, whose tangents a detached copy loses."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def required(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, requiring gradients where `like` does, so that it can be differentiated by."""
    if tensor.requires_grad or not like.requires_grad:
        return tensor
    return tensor if in_forward_mode() or _moves(tensor) else leaf(tensor)


def at_leaves(
    function: Callable[[dict[str, Tensor]], Made],
    params: Mapping[str, Tensor],
    fixed: Collection[str] = (),
) -> Made:
    """`valued(function, params)`, of parameters that it can differentiate by, but for those fixed.

    Example:
        >>> at_leaves(lambda p: [x.requires_grad for x in p.values()],
        ...           {"w": torch.ones(2), "running_mean": torch.ones(2)}, fixed={"running_mean"})
        [True, False]
    """
    with unheard():
        leaves = {n: p if n in fixed else leaf(p) for n, p in params.items()}
    return valued(function, leaves)


def leaf(tensor: Tensor) -> Tensor:
    """The tensor, requiring gradients where it can have one."""
    real = tensor.is_floating_point() or tensor.is_complex()
    if tensor.requires_grad or not real:
        return tensor
    with torch.inference_mode(False):  # a tensor made in inference mode can never have a gradient
        return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _moves(tensor: Tensor) -> bool:
    """Whether a tangent goes with the tensor, which a detached one would lose."""
    return fwAD.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _freed(tensor: Tensor) -> Tensor:
    return tensor if tensor.grad_fn is None else tensor.detach()
