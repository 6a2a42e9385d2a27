"""Stand-ins for a monitor that leaks, each in one way; the comparison must catch every one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from eqtoolbox.replay.isolation import random_streams
from tests.neutrality.random_loops.loop import Loop
from tests.neutrality.random_loops.losses import Batch


class Idle:
    """Has the methods of a monitor that a loop calls, and does nothing."""

    def observe(self, batch: Batch) -> None: ...

    def probe_now(self) -> None: ...

    def close(self) -> None: ...


def unprotected(loop: Loop) -> Idle:
    """Evaluates each loss once more; only buffers and the global streams are put back."""
    function = loop.function

    def evaluated_again(model: nn.Module, batch: Batch) -> Any:
        loss = function(model, batch)
        before = [(b, b.clone()) for b in model.buffers()]
        with random_streams():
            function(model, batch)
        for buffer, value in before:
            buffer.data.copy_(value)
        return loss

    loop.function = evaluated_again
    return Idle()


def _exchange(loop: Loop) -> None:
    loop.memories[0].history = list(loop.memories[0].history)


def _require(loop: Loop) -> None:
    loop.memories[1].running.requires_grad_(True)


def _retype(loop: Loop) -> None:
    loop.memories[1].running = loop.memories[1].running.double()


def _call(loop: Loop) -> None:
    original = nn.Module.__call__
    nn.Module.__call__ = lambda self, *args, **kwargs: original(self, *args, **kwargs)


def _table(loop: Loop) -> None:
    torch_module._global_forward_hooks = dict(torch_module._global_forward_hooks)


FAULTS: dict[str, Callable[[Loop], Any]] = {
    "draws from the global stream": lambda loop: torch.rand(1),
    "leaves a module in evaluation": lambda loop: loop.model.head.eval(),
    "freezes a parameter": lambda loop: loop.model.head.bias.requires_grad_(False),
    "leaves a hook": lambda loop: loop.model.head.register_forward_hook(lambda *_: None),
    "takes the user's hooks away": lambda loop: loop.model.head._forward_hooks.clear(),
    "leaves an attribute": lambda loop: setattr(loop.model.body, "seen", 1),
    "leaves an attribute on the optimizer": lambda loop: setattr(loop.optimizers[0], "seen", 1),
    "leaves a hook on the optimizer": lambda loop: loop.optimizers[0].register_step_post_hook(
        lambda *_: None
    ),
    "exchanges a container for its copy": _exchange,
    "lets a plain tensor require gradients": _require,
    "changes the type of a plain tensor": _retype,
    "exchanges Module.__call__": _call,
    "exchanges the table of global hooks": _table,
    "leaves gradients off": lambda loop: torch.set_grad_enabled(False),
}


def faulty(fault: str) -> Callable[[Loop], Idle]:
    """A monitor that does this once, when it is attached."""

    def attach(loop: Loop) -> Idle:
        FAULTS[fault](loop)
        return Idle()

    return attach
