"""Programs: calls of a module that torch.compile made one of, where no hook of ours runs."""

import gc
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from eqtoolbox.replay.reach.slots import MARK


def compiled_around(model: nn.Module) -> nn.Module | None:
    """What `torch.compile(model)` returned, if there is one in this program; it may be called."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is None:
        return None
    kind = compiler.OptimizedModule
    found = (o for o in gc.get_objects() if issubclass(type(o), kind))
    return next((o for o in found if vars(o).get("_modules", {}).get("_orig_mod") is model), None)


def compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return vars(module).get(MARK) is not None


class InPlace:
    """Stands where `module.compile()` put the program, and calls hooks around it, until `remove`.

    Args:
        module: that was compiled in place.
        before: is called as a forward pre-hook with keywords.
        after: as a forward hook with keywords.
    """

    def __init__(
        self, module: nn.Module, before: Callable[..., Any], after: Callable[..., Any]
    ) -> None:
        self._module, self._before, self._after = module, before, after
        self._program = vars(module)[MARK]
        vars(module)[MARK] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the program returns."""
        self._before(self._module, args, kwargs)
        result = self._program(*args, **kwargs)
        self._after(self._module, args, kwargs, result)
        return result

    def remove(self) -> None:
        """Put the program back, if nobody put another one there."""
        if vars(self._module).get(MARK) is self:
            vars(self._module)[MARK] = self._program
