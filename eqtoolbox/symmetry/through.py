"""Through: the derivative of a function of inputs passes where its own code cuts the graph.

Models that take gradients inside (forces of an energy) detach their inputs first, and build no
graph of these gradients in evaluation mode. The map that they compute moves with its inputs all the
same: a derivative that stops there would be zero without a word.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eqtoolbox.replay.gradients import valued

_KEEPS = 4  # the position of `create_graph`
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class ThroughModel(TorchFunctionMode):
    """Scope in which detaching does nothing, and every inner gradient can be differentiated.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with ThroughModel():
        ...     y = (x.detach() ** 2).sum()
        >>> torch.autograd.grad(y, x)[0]
        tensor([2., 2.])
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            kept = {} if len(args) > _KEEPS else {"create_graph": True}
            args = (*args[:_KEEPS], True, *args[_KEEPS + 1 :]) if len(args) > _KEEPS else args
            return func(*args, **{**kwargs, **kept})
        cut = func in (Tensor.detach, torch.detach, Tensor.detach_, _DATA)
        if cut and args and args[0].requires_grad:
            return args[0].view_as(args[0])
        if func is Tensor.requires_grad_ and args[0].grad_fn is not None:
            return args[0]  # it does already
        return func(*args, **kwargs)


class _Gradients(TorchFunctionMode):
    """Notices gradients that are taken inside."""

    taken: bool = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.taken = self.taken or func is torch.autograd.grad
        return func(*args, **(kwargs or {}))


def takes_gradients(body: Callable[[], Any]) -> bool:
    """Whether `body` differentiates inside.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> takes_gradients(lambda: torch.autograd.grad(x.sum(), x)), takes_gradients(x.sum)
        (True, False)
    """
    with _Gradients() as seen:
        valued(body)
    found: bool = seen.taken
    return found


def cut(tensor: Tensor) -> Tensor:
    """Detached, inside this scope too."""
    with torch._C.DisableTorchFunction():
        return tensor.detach()
