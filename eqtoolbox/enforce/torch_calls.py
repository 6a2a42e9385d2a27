"""The torch functions that code calls, as it calls them: `linear`, `max_pool2d`, `view`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_EITHER = frozenset({"add", "mul"})
_REFLECTED = _EITHER | {"sub", "div", "truediv", "pow", "matmul", "neg", "abs"}


@dataclass(frozen=True, eq=False)
class TorchCall:
    """One call of a torch function."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def arg(self, position: int, keyword: str = "", default: Any = None) -> Any:
        """The argument at `position` or called `keyword`."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(keyword, default)

    @property
    def x(self) -> Tensor:
        """The first argument."""
        given: Tensor = self.arg(0, "input")
        return given


class TorchCalls(TorchFunctionMode):
    """Tells of every call when it is done.

    Example:
        >>> import torch
        >>> with TorchCalls(lambda call: print(call.name)):
        ...     x = 1 - torch.ones(2).relu_()
        ones
        relu
        rsub
    """

    def __init__(self, tell: Callable[[TorchCall], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and tell."""
        result = func(*args, **(kwargs or {}))
        self.tell(TorchCall(_name(func), args, kwargs or {}, result))
        return result


def _name(func: Any) -> str:
    """`add` of `add_`, `__radd__` and `__iadd__`; the property of a getter."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        name = str(getattr(func.__self__, "__name__", name))
    bare = name.strip("_")
    if name.startswith("__") and bare[:1] in "ri" and bare[1:] in _REFLECTED:
        return bare[1:] if bare[0] == "i" or bare[1:] in _EITHER else bare
    return bare if not name.startswith("__") or bare in _REFLECTED else name
