"""Hooks of the user's: on modules, tensors, optimizers and all modules; what they see is logged."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from tests.neutrality.random_loops.digest import Walk

Log = list[Any]


def _seen(x: Any) -> str:
    return Walk().part(x)


def _scaling(log: Log, output: Any) -> Any:
    log.append("scaled")
    return output * (1 + 0.01 * len(log))


def _numbered(log: Log, gradient: Any) -> Any:
    log.append(("gradient", _seen(gradient)))
    return gradient * 1.01


HOOKS: dict[str, Callable[[nn.Module, list[Any], Log], Any]] = {
    "before the forward": lambda m, _, log: m.register_forward_pre_hook(
        lambda module, args: log.append(("before", _seen(args[0])))
    ),
    "after the forward": lambda m, _, log: m.head.register_forward_hook(
        lambda module, args, output: log.append(("after", _seen(output)))
    ),
    "with keywords": lambda m, _, log: m.stem.register_forward_hook(
        lambda module, args, keywords, output: log.append(("keywords", len(keywords))),
        with_kwargs=True,
    ),
    "changing the output": lambda m, _, log: m.head.register_forward_hook(
        lambda module, args, output: _scaling(log, output)
    ),
    "backward": lambda m, _, log: m.head.register_full_backward_hook(
        lambda module, before, after: log.append(("backward", _seen(after)))
    ),
    "tensor": lambda m, _, log: m.head.weight.register_hook(lambda g: _numbered(log, g)),
    "accumulated": lambda m, _, log: m.head.bias.register_post_accumulate_grad_hook(
        lambda p: log.append(("accumulated", _seen(p.grad)))
    ),
    "before the step": lambda _, optimizers, log: optimizers[0].register_step_pre_hook(
        lambda *_: log.append("before the step")
    ),
    "after the step": lambda _, optimizers, log: optimizers[-1].register_step_post_hook(
        lambda *_: log.append("after the step")
    ),
    "drawing": lambda m, _, log: m.register_forward_pre_hook(
        lambda *_: log.append((torch.rand(1).item(), random.random()))
    ),
    "all modules": lambda *given: torch_module.register_module_forward_hook(
        lambda module, args, output: given[2].append(type(module).__name__)
    ),
    "all modules, backward": lambda *given: torch_module.register_module_full_backward_hook(
        lambda module, before, after: given[2].append(type(module).__name__)
    ),
}
OF_THE_PROCESS = ("drawing", "all modules", "all modules, backward")
