"""Kinds: which things a walk passes by, which go on by themselves, and what a program defines."""

import builtins
import functools
import itertools
import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from eqtoolbox.replay.reach.code import of_a_user
from eqtoolbox.replay.reach.slots import MARK

SMALL = 2**20  # bytes of a tensor that is copied at once; larger ones before they are written
LARGE = 2**26  # bytes of a NumPy array that is copied; of larger ones a sample is compared
MANY = 100_000  # objects that are looked at
ATOMS = frozenset({
    int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range,
    slice, object, types.CodeType, types.GenericAlias, types.UnionType,
    types.WrapperDescriptorType, types.MethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, np.dtype, np.ufunc,
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
TELLING = TRACKERS | {"IPython", "ipykernel", "tqdm"}  # whose threads draw no random numbers
GLOBAL = (torch.default_generator, random._inst, np.random.mtrand._rand)
_THREADS = ("_asyncio", "_thread", "asyncio", "threading")
_FRAMEWORKS = (
    *_THREADS, "accelerate", "ignite", "keras", "lightning",
    "lightning_fabric", "logging", "pytorch_lightning", "transformers.trainer",
    "transformers.training_args", "trl.trainer",
)  # fmt: skip
_LEFT = frozenset({  # other libraries whose objects are not entered
    "contextvars", "datetime", "eqtoolbox", "inspect", "numpy", "pathlib", "re", "triton", "typing",
})  # fmt: skip
_TORCH_LEFT = (  # parts of torch whose objects are not entered, beside those with an underscore
    "torch.autograd", "torch.backends", "torch.cuda", "torch.distributed", "torch.export",
    "torch.fx", "torch.jit", "torch.library", "torch.overrides", "torch.profiler", "torch.types",
    "torch.utils.hooks", "torch.utils.weak",
)  # fmt: skip
_ENTERED = ("torch.cuda.amp", "torch.distributed.optim")
_CONSTANT = frozenset({  # libraries whose objects made in C do not change, or only remember
    "_abc", "_collections", "_decimal", "_functools", "_json", "_operator", "_sre", "_struct",
    "_typing", "datetime", "fractions", "functools", "jaxlib", "numba", "operator", "pyarrow",
    "re", "scipy", "sentencepiece", "sklearn", "tokenizers", "typing", "uuid", "zoneinfo",
})  # fmt: skip
_DESCRIPTORS = (
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.MethodDescriptorType, types.WrapperDescriptorType,
)  # fmt: skip
STANDARD = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", MARK}
TABLES = ("_parameters", "_buffers", "_modules")


def functions_of(value: Any) -> tuple[Any, ...]:
    """The functions inside a static or class method or a property; else the thing itself."""
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    return (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)


def of_a_library(value: Any) -> bool:
    """Whether a global name stands for a library's module, function or class."""
    kind = type(value)  # proxies may answer to `isinstance` for others, or raise
    if issubclass(kind, types.ModuleType):
        return not of_the_program(value)
    if issubclass(kind, types.FunctionType):
        return value.__closure__ is None and not of_a_user(value.__code__.co_filename)
    return issubclass(kind, type) and not users_classes(value)


def of_the_program(module: types.ModuleType) -> bool:
    """Whether a module is the program's own."""
    return of_a_user(getattr(module, "__file__", None) or "<frozen")


@functools.lru_cache(maxsize=4096)
def users_classes(kind: type) -> tuple[type, ...]:
    """Those of the bases of a class that the program itself defines."""
    return tuple(one for one in kind.__mro__[:-1] if _mine(one))


def _mine(kind: type) -> bool:
    if kind.__module__ in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return of_a_user(file) if file else kind.__module__ == "__main__"


@functools.lru_cache(maxsize=4096)
def slotted(kind: type) -> tuple[str, ...]:
    """The attributes that the classes of a thing have in slots."""
    names = dict.fromkeys(name for one in kind.__mro__ for name in _slots(one))
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))


def _slots(kind: type) -> Iterator[str]:
    own = vars(kind).get("__slots__", ())
    for name in [own] if isinstance(own, str) else own:
        private = name.startswith("__") and not name.endswith("__")
        yield f"_{kind.__name__.lstrip('_')}{name}" if private else name


@functools.lru_cache(maxsize=4096)
def made_in_c(kind: type) -> type | None:
    """The base of a class that keeps a state in C, beside `object`; None where all is in Python."""
    return next((one for one in kind.__mro__[:-1] if _in_c(one)), None)


def _in_c(kind: type) -> bool:
    seen = {"__dict__", "__weakref__", *_slots(kind)}
    return any(
        isinstance(value, _DESCRIPTORS) and value.__objclass__ is kind and name not in seen
        for name, value in vars(kind).items()
    )


def roots_of(kind: type) -> set[str]:
    """The libraries that a class and its bases come from."""
    return {base.__module__.partition(".")[0] for base in kind.__mro__}


def tracks(kind: type) -> bool:
    """Whether it is of a tracker of experiments."""
    return bool(roots_of(kind) & TRACKERS) or kind.__module__.startswith("torch.utils.tensorboard")


def is_table(kind: type) -> bool:
    """Whether it is a table or a column of pandas: one that a program derives is not."""
    return kind.__name__ in ("DataFrame", "Series") and kind.__module__.startswith("pandas")


def of_a_framework(kind: type) -> bool:
    """Whether a class is, or derives from, one that runs a training, a thread or a log."""
    return any(_within(base.__module__, _FRAMEWORKS) for base in kind.__mro__)


def runs_threads(kind: type) -> bool:
    """Whether things of a class belong to threads or tasks, whose other ends may set them."""
    return any(_within(base.__module__, _THREADS) for base in kind.__mro__)


def passed_by(kind: type) -> bool:
    """Whether things of a class are not entered: they do not change, or are a library's affair."""
    root = kind.__module__.partition(".")[0]
    if root == "torch":
        private = any(part.startswith("_") for part in kind.__module__.split("."))
        return private or (
            _within(kind.__module__, _TORCH_LEFT) and not _within(kind.__module__, _ENTERED)
        )
    if root == "builtins":
        return getattr(builtins, kind.__name__, None) is kind or kind in _TYPES
    if kind.__name__.startswith(_FUNCTIONS):
        return True
    return root in _LEFT or (constant(kind) and not kind.__dictoffset__)


def constant(kind: type) -> bool:
    """Whether what things of a class keep in C does not change, or only remembers."""
    base = made_in_c(kind)
    return base in ATOMS or (base is not None and base.__module__.partition(".")[0] in _CONSTANT)


def _within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


_FUNCTIONS = ("PyCapsule", "cython_function_or_method", "pybind11_detail_function_record")
_TYPES = frozenset(value for value in vars(types).values() if isinstance(value, type))
