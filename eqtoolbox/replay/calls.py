"""Calls: how a replay calls modules: as the training does, forward hooks of the user's included.

What a forward hook changes, or keeps for the loss to read, is part of what the loss computes; what
it leaves behind is put back with everything else in reach. Hooks of a backward are no part of it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from eqtoolbox.replay.casts import cast_inputs, cast_output
from eqtoolbox.replay.reach.kinds import TRACKERS
from eqtoolbox.replay.reach.slots import MARK
from eqtoolbox.replay.streams import alone
from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
_MODULES = Intercepted(("torch.nn.modules.module", "Module"), "__call__")
_COMPILED = Intercepted(("torch._dynamo.eval_frame",), "_callback_from_stance")


class Answer:
    """Stands where torch looks for a compiled call of one module, for as long as a replay lasts."""

    __slots__ = ("before", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.before = module, vars(module).get(MARK)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current() is not None:
            return bare(self.module, args, kwargs)
        return (self.before or self.module._call_impl)(*args, **kwargs)


def answer(modules: Iterable[nn.Module]) -> None:
    """Answer calls of these modules."""
    for module in modules:
        vars(module)[MARK] = Answer(module)


def give_back(modules: Iterable[nn.Module]) -> None:
    """Have them answer themselves again."""
    for module in modules:
        mine = vars(module).pop(MARK, None)
        if isinstance(mine, Answer) and mine.before is not None:
            vars(module)[MARK] = mine.before


def bare(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """`module(*args, **kwargs)` with the forward hooks that are part of what it computes.

    Those on all modules are, too, unless another thread runs whose calls they may be told of.

    Raises:
        RuntimeError: the module is a wrapper whose call would talk to other processes.
    """
    if type(module).__name__ in _WRAPPERS:
        raise RuntimeError(
            f"the loss calls a {type(module).__name__} itself, which talks to other processes; "
            "let it call the model it is given as its argument"
        )
    own = vars(module)
    forward = own.get("_original_forward") or module.forward  # Accelerate's casts cannot be left
    before, after = own.get("_forward_pre_hooks") or (), own.get("_forward_hooks") or ()
    if not before and not after and not global_hooks():
        return forward(*args, **kwargs)
    args, kwargs = cast_inputs(module, args, kwargs)
    named = own.get("_forward_pre_hooks_with_kwargs") or ()
    for key, hook in _acting(before, "_global_forward_pre_hooks"):
        given = hook(module, args, kwargs) if key in named else hook(module, args)
        if given is not None and key in named:
            args, kwargs = given
        elif given is not None:
            args = given if isinstance(given, tuple) else (given,)
    result = forward(*args, **kwargs)
    named = own.get("_forward_hooks_with_kwargs") or ()
    named = {*named, *getattr(torch_module, "_global_forward_hooks_with_kwargs", ())}
    for key, hook in _acting(after, "_global_forward_hooks"):
        seen = (module, args, kwargs, result) if key in named else (module, args, result)
        changed = hook(*seen)
        result = result if changed is None else changed
    return cast_output(module, result)


def _acting(own: Any, everywhere: str) -> list[tuple[int, Callable[..., Any]]]:
    """Hooks by key, in the order in which torch calls them."""
    hooks = chain(_of_all_modules(everywhere).items(), dict(own).items())
    return [(key, hook) for key, hook in hooks if acts(hook)]


def _of_all_modules(table: str) -> dict[int, Callable[..., Any]]:
    return getattr(torch_module, table) if alone() else {}


def acts(hook: Any) -> bool:
    """Whether a hook is part of what a module computes: not one that tells a tracker or us.

    Nor is one by which torch moves parameters and activations between processes.
    """
    while type(hook) is partial:
        hook = hook.func
    owner = hook.__self__ if type(hook) is MethodType else hook
    named = owner if issubclass(type(owner), FunctionType | type) else type(owner)
    where = str(named.__module__)
    library = where.partition(".")[0]
    return (
        library not in TRACKERS
        and not where.startswith("torch.distributed.")
        and not (library == "eqtoolbox" and getattr(owner, "training_only", False))
    )


def hooks_of_all_modules() -> list[Callable[..., Any]]:
    """Forward hooks on the calls of every module, as far as a replay calls them."""
    tables = ("_global_forward_pre_hooks", "_global_forward_hooks")
    return [hook for table in tables for hook in _of_all_modules(table).values()]


def _met(call: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    replay = current()
    if replay is None:
        return call(module, *args, **kwargs)
    replay.meet(module)
    return bare(module, args, kwargs)


@contextmanager
def every_call() -> Iterator[None]:
    """Scope in which this thread calls all modules by `bare`, those that no walk has found, too."""
    with _MODULES.answered_by(_met):
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """Scope in which compiled code of this thread runs eagerly."""
    with _COMPILED.answered_by(lambda original, callback: None):
        yield


def global_hooks() -> bool:
    """Whether the user has hooks on the calls of all modules."""
    return bool(torch_module._has_any_global_hook())  # type: ignore[no-untyped-call]
