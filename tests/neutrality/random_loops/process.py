"""Process: what belongs to all loops of a process, which one of them must not change."""

import random
from typing import Any

import numpy as np
import torch
import torch._dynamo  # exchanges functions of torch itself, once
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils import checkpoint as torch_checkpoint

TABLES = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks", "_global_forward_hooks_always_called",
)  # fmt: skip
PATCHED = (
    (nn.Module, ("__call__", "_call_impl", "__getattr__", "__setattr__", "train")),
    (torch.Tensor, ("backward", "register_hook", "detach", "numpy")),
    (torch.autograd, ("backward", "grad")),
    (torch.optim.Optimizer, ("__init__", "zero_grad", "step", "profile_hook_step")),
    (torch_checkpoint, ("checkpoint",)),
    (torch_module, TABLES),
    (torch, ("rand", "randn", "manual_seed", "get_rng_state", "set_rng_state")),
    (random, ("random", "seed", "getstate")),
    (np.random, ("rand", "seed", "default_rng")),
)  # fmt: skip
ORIGINAL = {(id(o), n): getattr(o, n) for o, names in PATCHED for n in names if hasattr(o, n)}


def mend() -> None:
    """Put back what a loop left exchanged, so that the next one is judged by itself."""
    for owner, names in PATCHED:
        for name in names:
            if hasattr(owner, name) and getattr(owner, name) is not ORIGINAL[id(owner), name]:
                setattr(owner, name, ORIGINAL[id(owner), name])


def streams() -> list[Any]:
    """The random streams that all share."""
    return [torch.get_rng_state(), np.random.get_state(), random.getstate()]


def process() -> str:
    """Flags and modes in force, and the names of functions of torch that are not what they were."""
    exchanged = [
        name
        for owner, names in PATCHED
        for name in names
        if hasattr(owner, name) and getattr(owner, name) is not ORIGINAL[id(owner), name]
    ]
    return repr(
        (
            exchanged,
            [len(getattr(torch_module, table)) for table in TABLES],
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.backends.mkldnn.enabled,
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
            torch._C._functorch.maybe_current_level(),
        )
    )


def hook_tables(owner: Any, without: str = "-") -> list[Any]:
    """Names of the hooks of a module or an optimizer, in order, those of a package left out."""
    tables = []
    for name, table in sorted(vars(owner).items()):
        if "hooks" in name and hasattr(table, "values"):
            hooks = [h for h in table.values() if not _module_of(h).startswith(without)]
            said = [getattr(h, "__qualname__", type(h).__name__) for h in hooks if callable(h)]
            tables.append((name, said))
    return tables


def _module_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", None) or type(hook).__module__)
