"""Calls: how a replay calls modules, without the hooks that belong to the training's own calls."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from eqtoolbox.replay.interception import Intercepted
from eqtoolbox.replay.scope import current
from eqtoolbox.replay.slots import MARK

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
    """`module(*args, **kwargs)` with no hooks but those that are part of the function it computes.

    These are torch's own (old-style weight and spectral normalisation, pruning) and those of a
    probe that looks on.

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
    before, after = own.get("_forward_pre_hooks"), own.get("_forward_hooks")
    if not before and not after:
        return forward(*args, **kwargs)
    named = own.get("_forward_pre_hooks_with_kwargs", ())
    for key, hook in [*(before or {}).items()]:
        if fires(hook):
            given = hook(module, args, kwargs) if key in named else hook(module, args)
            if given is not None and key in named:
                args, kwargs = given
            elif given is not None:
                args = given if isinstance(given, tuple) else (given,)
    result = forward(*args, **kwargs)
    named = own.get("_forward_hooks_with_kwargs", ())
    for key, hook in [*(after or {}).items()]:
        if fires(hook):
            seen = (module, args, kwargs, result) if key in named else (module, args, result)
            changed = hook(*seen)
            result = result if changed is None else changed
    return result


def fires(hook: Any) -> bool:
    """Whether a hook is part of what a module computes, or a probe's own."""
    owner = getattr(hook, "__self__", hook)
    module = str(getattr(owner, "__module__", None) or type(owner).__module__)
    if module.partition(".")[0] == "torch":
        return True
    return module.startswith("eqtoolbox.") and not getattr(hook, "training_only", False)


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
