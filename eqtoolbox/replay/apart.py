"""Apart: a scope of ours inside of a training that no mode of the program's own is told of.

Counters of operations, modes of torch and hooks on what graphs save stay as they are for what the
training does, and are off for what is measured. Where tensors are made (`torch.device(...)`) and
where graphs keep theirs (`save_on_cpu`) holds for both.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

_graphs: Any = torch._C._autograd


class Apart:
    """`with Apart():` of this thread; scopes may lie inside each other.

    Example:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(display=False) as counted, Apart():
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> counted.get_total_flops()
        0
    """

    __slots__ = ("_left",)

    def __enter__(self) -> None:
        self._left: ExitStack | None = None
        if (
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or _graphs._top_saved_tensors_default_hooks(True)
        ):
            with ExitStack() as scope:
                if torch._C._len_torch_dispatch_stack():
                    scope.enter_context(_disable_current_modes())
                _leave_functions(scope)
                _leave_graphs(scope)
                self._left = scope.pop_all()

    def __exit__(self, *error: object) -> None:
        if self._left is not None:
            self._left.close()


def _leave_functions(scope: ExitStack) -> None:
    """Leave all modes of functions but those that say where tensors are made."""
    modes: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if all(isinstance(mode, DeviceContext) for mode in modes):
        return

    def exchange(old: list[Any], new: list[Any]) -> None:
        for _ in old:
            _pop_mode()  # type: ignore[no-untyped-call]
        for mode in new:
            _push_mode(mode)  # type: ignore[no-untyped-call]

    kept = [mode for mode in modes if isinstance(mode, DeviceContext)]
    exchange(modes, kept)
    scope.callback(exchange, kept, modes)


def _leave_graphs(scope: ExitStack) -> None:
    """Leave the program's own hooks on tensors that graphs save."""
    left = []
    while pair := _graphs._top_saved_tensors_default_hooks(True):
        left.append(pair)
        _graphs._pop_saved_tensors_default_hooks()
    left.reverse()
    kept = [pair for pair in left if pair[0].__module__ == "torch.autograd.graph"]
    for pair in kept:
        _graphs._push_saved_tensors_default_hooks(*pair)

    def put_back() -> None:
        for _ in kept:
            _graphs._pop_saved_tensors_default_hooks()
        for pair in left:
            _graphs._push_saved_tensors_default_hooks(*pair)

    scope.callback(put_back)
