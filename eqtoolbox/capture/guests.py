"""Guests: modules outside the watched model that its loss calls, kept from changing.

A teacher, a discriminator or a criterion that the loss finds in its arguments or closure is the
user's own live module: each evaluation would move its buffers and fire its hooks.
"""

import dataclasses
import functools
import inspect
import threading
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
MANY = 100  # members of a list that are looked at
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


class Scope(nn.Module):
    """Runs `body(model)`; `functional_call` on it keeps parameters swapped for the whole body."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Any) -> Any:
        return body(self.model)


class Guests:
    """Every module called in the scope that is none of `hosts`; buffers are clones meanwhile.

    Args:
        hosts: protected by someone else.
        expected: guests known beforehand, of which all attributes are kept; of those that turn up
            in the middle of an evaluation, only buffers and hooks can be.
    """

    def __init__(self, hosts: Iterable[nn.Module], expected: Iterable[nn.Module] = ()) -> None:
        self._known = {id(m) for host in hosts for m in host.modules()}
        self._before: list[tuple[nn.Module, dict[str, Any]]] = []
        self._thread = threading.get_ident()
        for module in expected:
            self._take_in(module, (*module.__dict__,))

    def meet(self, module: nn.Module) -> None:
        """Take in a module that is about to be called.

        Raises:
            RuntimeError: it is a wrapper whose call would talk to other processes.
        """
        if id(module) in self._known or isinstance(module, Scope):
            return
        if threading.get_ident() != self._thread:
            return
        if type(module).__name__ in _WRAPPERS:
            raise RuntimeError(
                f"the loss calls a {type(module).__name__} itself, which talks to other processes; "
                "let it call the model it is given as its argument"
            )
        self._take_in(module, (*HOOKS, "_buffers"))

    def _take_in(self, module: nn.Module, names: Iterable[str]) -> None:
        for m in module.modules():
            if id(m) not in self._known:
                self._known.add(id(m))
                self._before.append((m, {n: m.__dict__[n] for n in names if n in m.__dict__}))
                set_apart(m, m.__dict__)

    def renew(self) -> None:
        """Put all guests back to where they were met, so that evaluations are repeatable."""
        for module, attributes in self._before:
            module.__dict__.update(attributes)
            set_apart(module, attributes)

    def leave(self) -> None:
        """Give all guests back as they came."""
        for module, attributes in self._before:
            module.__dict__.update(attributes)
        self._before.clear()


_scopes: list[Guests] = []


@contextmanager
def guests(*hosts: nn.Module, expected: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Scope in which modules other than `hosts` are protected, and no global hook fires."""
    present, call = Guests(hosts, expected), nn.Module.__call__

    def meeting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        present.meet(module)
        return call(module, *args, **kwargs)

    hooks = {name: getattr(torch_module, name) for name in _GLOBAL}
    try:
        for name in _GLOBAL:
            setattr(torch_module, name, OrderedDict())
        nn.Module.__call__ = meeting  # type: ignore[method-assign]
        _scopes.append(present)
        yield
    finally:
        _scopes.remove(present)
        nn.Module.__call__ = call  # type: ignore[method-assign]
        for name, own in hooks.items():
            setattr(torch_module, name, own)
        present.leave()


def renew_guests() -> None:
    """Undo what the evaluation before did to guests."""
    for present in _scopes:
        present.renew()


def evaluating() -> bool:
    """Whether a probe evaluates the loss, not the training loop."""
    return bool(_scopes)


def restore_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Make the attributes of a module what they were."""
    for name in module.__dict__.keys() - attributes.keys():
        del module.__dict__[name]
    module.__dict__.update(attributes)


def only_torch(hooks: "OrderedDict[int, Any]") -> "OrderedDict[int, Any]":
    """The hooks defined inside torch: part of the function, not of the user's bookkeeping."""

    def module_of(hook: Any) -> str:
        owner = getattr(hook, "__self__", hook)
        return str(getattr(owner, "__module__", None) or type(owner).__module__)

    return OrderedDict(
        (key, h) for key, h in hooks.items() if module_of(h).split(".", 1)[0] == "torch"
    )


def without_user_hooks(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Leave only the hooks of torch itself among those in `attributes`."""
    for name in HOOKS:
        if attributes.get(name):
            module.__dict__[name] = only_torch(attributes[name])


def set_apart(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Take the user's hooks off a module and clone its buffers, for as long as probes run."""
    without_user_hooks(module, attributes)
    buffers = attributes.get("_buffers", {})
    module.__dict__["_buffers"] = {
        name: None if b is None else b.detach().clone() for name, b in buffers.items()
    }


def modules_in(thing: Any, depth: int = 4) -> Iterator[nn.Module]:
    """Modules that a function can reach: in its arguments, closure, defaults, owner and globals."""
    if isinstance(thing, nn.Module):
        yield thing
        return
    for inner in _reachable(thing) if depth else ():
        yield from modules_in(inner, depth - 1)


def _reachable(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (tuple, list)):
        yield from thing[:MANY]
    elif isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        with suppress(ValueError):  # a name that is not bound yet
            closed = inspect.getclosurevars(thing)
            yield from (closed.nonlocals, closed.globals)
        yield from (thing.__defaults__, thing.__kwdefaults__)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from vars(thing).values()
