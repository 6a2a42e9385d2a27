"""Kinds: which things a walk passes by, which go on by themselves, and what a program defines."""

import functools
import itertools
import os
import sys
import types
import weakref
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn

from eqtoolbox.replay.code import of_a_user
from eqtoolbox.replay.slots import MARK

SMALL = 2**20  # bytes of a tensor that is copied at once; larger ones before they are written
LARGE = 2**26  # bytes of a NumPy array that is copied; of larger ones a sample is compared
MANY = 100_000  # objects that are looked at
ATOMS = frozenset({
    int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range,
    slice, types.BuiltinFunctionType, types.CodeType, types.ModuleType, types.MethodWrapperType,
    types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.dtype, np.ufunc,
    weakref.ref, property, object,
})  # fmt: skip
ITERATORS = tuple(
    type(one)
    for one in (iter([]), iter(()), iter(range(0)), iter(""), iter(b""), reversed([]),
                iter(range(2**70)), iter("é"), itertools.count(), itertools.repeat(0))
)  # fmt: skip
ALONE = frozenset({  # whose objects go on by themselves, or reach out of the process
    "_csv", "_multiprocessing", "_queue", "_socket", "_sqlite3", "concurrent", "h5py", "lmdb",
    "mmap", "multiprocessing", "psycopg2", "queue", "redis", "requests", "socket", "sqlite3",
    "subprocess",
})  # fmt: skip
TRACKERS = frozenset({  # whose objects say nothing while a loss is evaluated again
    "aim", "clearml", "comet_ml", "mlflow", "neptune", "tensorboard", "tensorboardX", "trackio",
    "wandb",
})  # fmt: skip
_FRAMEWORKS = (  # also what a program derives from their classes
    "_asyncio", "_thread", "accelerate", "asyncio", "ignite", "keras", "lightning",
    "lightning_fabric", "logging", "pytorch_lightning", "threading", "transformers.trainer",
    "transformers.training_args", "trl.trainer",
)  # fmt: skip
_LEFT = frozenset({  # other libraries whose objects are not entered
    "builtins", "contextvars", "datetime", "decimal", "eqtoolbox", "inspect", "numpy", "pathlib",
    "re", "torch", "typing",
})  # fmt: skip
_ENTERED = ("torch.optim.", "torch.amp.", "torch.cuda.amp.", "torch.distributions.")
STANDARD = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", MARK}
TABLES = ("_parameters", "_buffers", "_modules")


def function_of(value: Any) -> Any:
    """The function inside a static or class method or a property; anything else itself."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def of_a_library(value: Any) -> bool:
    """Whether a global name stands for a library's module, function or class."""
    kind = type(value)  # proxies may answer to `isinstance` for others, or raise
    if issubclass(kind, types.ModuleType):
        return value is not os and not of_a_user(getattr(value, "__file__", None) or "<frozen")
    if issubclass(kind, types.FunctionType):
        return value.__closure__ is None and not of_a_user(value.__code__.co_filename)
    return issubclass(kind, type) and not users_classes(value)


@functools.lru_cache(maxsize=4096)
def users_classes(kind: type) -> tuple[type, ...]:
    """Those of the bases of a class that the program itself defines."""
    return tuple(one for one in kind.__mro__[:-1] if _mine(one))


def _mine(kind: type) -> bool:
    if kind.__module__ in sys.stdlib_module_names or isinstance(kind, type(Enum)):
        return False
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return of_a_user(file) if file else kind.__module__ == "__main__"


@functools.lru_cache(maxsize=4096)
def slotted(kind: type) -> tuple[str, ...]:
    names: list[str] = []
    for one in kind.__mro__:
        own = vars(one).get("__slots__", ())
        for name in [own] if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{one.__name__.lstrip('_')}{name}" if private else name)
    return tuple(n for n in dict.fromkeys(names) if n not in ("__dict__", "__weakref__"))


def roots_of(kind: type) -> set[str]:
    """The libraries that a class and its bases come from."""
    return {base.__module__.partition(".")[0] for base in kind.__mro__}


def tracks(kind: type) -> bool:
    """Whether it is of a tracker of experiments."""
    return bool(roots_of(kind) & TRACKERS) or kind.__module__.startswith("torch.utils.tensorboard")


def passed_by(kind: type) -> bool:
    """Whether things of a class are not entered: a library's own, or a framework's Trainer."""
    if kind.__module__.partition(".")[0] in _LEFT and not kind.__module__.startswith(_ENTERED):
        return True
    return any(
        base.__module__ == name or base.__module__.startswith(f"{name}.")
        for base in kind.__mro__
        for name in _FRAMEWORKS
    )
