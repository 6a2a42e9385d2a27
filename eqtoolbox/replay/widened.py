"""Widened: a loss is computed in float64 throughout, wherever its tensors are born.

Losses draw times and noise in the default type, build schedules and masks, cast logits to float32,
and hold constants that no walk of the model finds. Beside float64 parameters torch refuses some
products of two types, and others are rounded to 1e-7. Here every narrower type that a program names
or makes stands for float64. Random numbers are drawn in the type that training draws them in, and
cast: their values stay those of the training.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import _get_current_function_mode_stack

from eqtoolbox.replay.modes import OwnMode
from eqtoolbox.replay.thread.scope import unobserved

_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})
_READS = frozenset({Tensor.view, Tensor.numpy, Tensor.data_ptr, Tensor.element_size})
_BORN = frozenset({torch.rand, torch.randn, torch.normal})
_ALIKE = frozenset({torch.rand_like, torch.randn_like})
_FILLED = frozenset({
    Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.cauchy_, Tensor.log_normal_,
    Tensor.bernoulli_, Tensor.geometric_, Tensor.random_,
})  # fmt: skip
_SAMPLED = frozenset({torch.bernoulli, Tensor.bernoulli, torch.poisson, torch.multinomial})
_AS_IT_IS = frozenset({int, float, bool, str, type(None)})
_ASSIGNS = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"})


class Widened(OwnMode):
    """Scope in which tensors of narrower floating types are of type float64.

    Args:
        drawn: the type of what training draws like a tensor of its own.

    Example:
        >>> with Widened():
        ...     torch.ones(2, dtype=torch.float64).float().dtype, torch.linspace(0, 1, 3).dtype
        (torch.float64, torch.float64)
    """

    def __init__(self, drawn: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.drawn = drawn
        # of narrow tensors that are differentiated by: the same twin each time
        self._twins: dict[int, tuple[Tensor, int, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if type(func) is MethodWrapperType or func in _READS:  # an attribute, or bits
            return func(*args, **kwargs)
        if func in _CASTS:
            return args[0].to(torch.float64)
        if func in _BORN and not any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):
            return self._draw(func, args, kwargs, torch.get_default_dtype())
        if func in _ALIKE:
            return self._draw(func, args, kwargs, self.drawn)
        if func in _FILLED and args[0].dtype == torch.float64:
            narrow = torch.empty_like(args[0], dtype=self.drawn)
            return args[0].copy_(func(narrow, *self._as_drawn(args[1:]), **self._as_drawn(kwargs)))
        if func in _SAMPLED:
            return self._each(func(*self._as_drawn(args), **self._as_drawn(kwargs)))
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        written = 1 if _in_place(func) else 0
        if _narrow(args[written:], kwargs):
            args = (*args[:written], *self._each(args[written:]))
            kwargs = self._each(kwargs)
        made = func(*args, **kwargs)
        if written or not _narrow(made):
            return made
        if isinstance(made, Tensor) and made.requires_grad and made.is_leaf:
            return self._wide(made.detach()).requires_grad_()  # it was made to be a leaf
        return self._each(made)

    def _draw(self, func: Any, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
        asked = kwargs.get("dtype") or dtype
        asked = self.drawn if asked == torch.float64 else asked  # that of a tensor, which is wide
        return self._each(func(*args, **{**kwargs, "dtype": asked}))

    def _normal(self, mean: Any, std: Any = 1.0, *, generator: Any = None, out: Any = None) -> Any:
        """As torch makes it of standard normal numbers, on which nothing depends."""
        mean, std = (x.detach() if isinstance(x, Tensor) else x for x in (mean, std))
        drawn = torch.empty_like(torch.as_tensor(mean + std), dtype=self.drawn)
        made = self._wide(drawn.normal_(generator=generator)) * std + mean
        return made if out is None else out.copy_(made)

    def _as_drawn(self, given: Any) -> Any:
        """Wide tensors among arguments in the type that training draws in."""
        if isinstance(given, dict):
            return {key: self._as_drawn(x) for key, x in given.items()}
        if isinstance(given, tuple):
            return tuple(self._as_drawn(x) for x in given)
        if not isinstance(given, Tensor) or given.dtype != torch.float64:
            return given
        if is_functorch_wrapped_tensor(given):
            return given.detach().to(self.drawn)
        with unobserved():  # what is drawn is as exact as in training, and depends on nothing
            return given.detach().to(self.drawn)

    def _each(self, given: Any) -> Any:
        """Types and tensors in plain containers, widened; what is wide already is itself."""
        if type(given) in _AS_IT_IS:
            return given
        if isinstance(given, Tensor):
            return self._wide(given)
        if isinstance(given, torch.dtype):
            return _WIDE.get(given, given)
        if type(given) in (list, tuple):
            return type(given)([self._each(x) for x in given])
        if type(given) is dict:
            return {key: self._each(x) for key, x in given.items()}
        return given

    def _wide(self, tensor: Tensor) -> Tensor:
        wide = _WIDE.get(tensor.dtype)
        if wide is None:
            return tensor
        if not tensor.requires_grad:
            return tensor.to(wide)
        known = self._twins.get(id(tensor))
        if known is None or known[1] != tensor._version:
            known = self._twins[id(tensor)] = tensor, tensor._version, tensor.to(wide)
        return known[2]


@contextmanager
def widened(drawn: torch.dtype) -> Iterator[None]:
    """Scope of `Widened(drawn)`: of the one that there is already, drawing so meanwhile."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    around = next((mode for mode in stack if isinstance(mode, Widened)), None)
    if around is None:
        with Widened(drawn):
            yield
        return
    before, around.drawn = around.drawn, drawn
    try:
        yield
    finally:
        around.drawn = before


def _narrow(*given: Any) -> bool:
    """Whether there is anything to widen; no mode below is asked what a tensor is."""
    with torch._C.DisableTorchFunction():
        return _any_narrow(given)


def _any_narrow(given: Iterable[Any]) -> bool:
    for one in given:
        kind = type(one)
        if kind in _AS_IT_IS:
            continue
        if isinstance(one, Tensor):
            found = one.dtype in _WIDE
        elif kind is dict or kind is list or kind is tuple:
            found = _any_narrow(one.values() if kind is dict else one)
        else:
            found = kind is torch.dtype and one in _WIDE
        if found:
            return True
    return False


def _in_place(func: Any) -> bool:
    """Whether a function writes into its first argument, and hands it back."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.startswith("__")) or name in _ASSIGNS
