"""Listening: which global random streams this thread draws from, while other threads may, too."""

import random
import sys
from _lsprof import Profiler
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from eqtoolbox.replay.interception import Intercepted, InterceptedMethods
from eqtoolbox.replay.scope import current

_SEED: Any = random.seed
_PYTHON: Any = _SEED.__self__
_RAND: Any = np.random.rand
_GLOBAL: Any = _RAND.__self__
_NUMPY = tuple(
    Intercepted(("numpy", "random"), name)
    for name, function in vars(np.random).items()
    if name in ("seed", "ranf", "sample") or getattr(function, "__self__", None) is _GLOBAL
)
_SHARED = InterceptedMethods(("numpy", "random", "mtrand"), "_rand")  # where libraries find it
_CUDA = tuple(
    Intercepted(("torch.cuda",), name)
    for name in (
        "manual_seed", "manual_seed_all", "seed", "seed_all", "initial_seed", "get_rng_state",
        "get_rng_state_all", "set_rng_state", "set_rng_state_all",
    )
)  # fmt: skip
_SEEDS = InterceptedMethods(("torch.random",), "default_generator")


@contextmanager
def listening(names: frozenset[str], tell: Callable[[str], None]) -> Iterator[None]:
    """Scope in which `tell(name)` is called before this thread draws from one of these streams.

    A profiler of the program's own goes on in between only if it is a function.

    Functions of NumPy's are exchanged for it, methods of Python's and torch's own generators are
    seen by the profiler as they are called, however the program came by them.
    """

    def numpy(original: Any, *args: Any, **kwargs: Any) -> Any:
        tell("numpy")
        return original(*args, **kwargs)

    def profile(frame: Any, event: Any, called: Any) -> None:
        if event == "c_call":
            owner = getattr(called, "__self__", None)
            if owner is _PYTHON or owner is torch.default_generator:
                tell("python" if owner is _PYTHON else "torch")
        if before is not None:
            before(frame, event, called)

    with ExitStack() as scope:
        for way in (*_NUMPY, _SHARED) if "numpy" in names else ():
            scope.enter_context(way.answered_by(numpy))
        if names & {"python", "torch"}:
            before: Any = sys.getprofile()
            if isinstance(before, Profiler):  # cProfile's, which is no function
                scope.callback(before.enable)
                before.disable()
                before = None
            else:
                scope.callback(sys.setprofile, before)
            sys.setprofile(profile)
        yield


@contextmanager
def seeds_announced() -> Iterator[None]:
    """Scope in which a replay of this thread hears of seeds and states set in torch's streams."""
    with ExitStack() as scope:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for way in _CUDA:
                scope.enter_context(way.answered_by(_announced))
        scope.enter_context(_SEEDS.answered_by(_announced))
        yield


def _announced(original: Any, *args: Any, **kwargs: Any) -> Any:
    replay = current()
    if replay is not None:
        replay.draw()
    return original(*args, **kwargs)
