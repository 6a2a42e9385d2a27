"""Calls: how a replay calls modules, without the hooks that belong to the training's own calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from eqtoolbox.replay.interception import Intercepted
from eqtoolbox.replay.scope import current

_MODULES = Intercepted(("torch.nn.modules.module", "Module"), "__call__")
_COMPILED = Intercepted(("torch._dynamo.eval_frame",), "_callback_from_stance")


def bare(call: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`module(*args, **kwargs)` with no hooks but those that are part of the function it computes.

    These are torch's own (old-style weight and spectral normalisation, pruning) and those of a
    probe that looks on. Outside of a replay the call is as it was.
    """
    replay = current()
    if replay is None:
        return call(module, *args, **kwargs)
    replay.meet(module)
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


@contextmanager
def bare_calls() -> Iterator[None]:
    """Scope in which this thread calls modules by `bare`, and compiled code eagerly."""
    with _MODULES.answered_by(bare), _COMPILED.answered_by(lambda original, callback: None):
        yield
