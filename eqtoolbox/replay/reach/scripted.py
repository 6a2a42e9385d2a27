"""Scripted modules: their state lives in C++, and their code says which of it they may write."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.reach.slots import Exchange, Slot
from eqtoolbox.replay.reach.states import alike

_names: "weakref.WeakKeyDictionary[Any, tuple[str, ...]]" = weakref.WeakKeyDictionary()


class Scripted(Slot):
    """The attributes, other than tensors, that the code of a scripted module uses."""

    __slots__ = ("held",)

    def __init__(self, owner: torch.jit.ScriptModule, path: Any) -> None:
        self.owner, self.path = owner, path
        self.held = dict(_attributes(owner))

    def moved(self, exchange: Exchange) -> bool:
        return not alike(dict(_attributes(self.owner)), self.held)

    def put_back(self, exchange: Exchange) -> None:
        for name, value in self.held.items():
            self.owner._c.setattr(name, value)


def plain(module: torch.jit.ScriptModule) -> list[tuple[str, Tensor]]:
    """Tensors that are attributes, not buffers."""
    values = ((name, module._c.getattr(name)) for name in _used(module))
    known = {name for name, _ in [*module.named_buffers(), *module.named_parameters()]}
    return [(n, x) for n, x in values if isinstance(x, Tensor) and n not in known]


def _attributes(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Any]]:
    for name in _used(module):
        value = module._c.getattr(name)
        if isinstance(value, (bool, int, float, complex, str, list, dict, tuple, type(None))):
            yield name, value


def _used(module: torch.jit.ScriptModule) -> tuple[str, ...]:
    """Attributes that its methods read from it or write, modules aside."""
    found = _names.get(module)
    if found is None:
        names: dict[str, None] = {}
        for method in module._c._method_names():
            graph = module._c._get_method(method).graph
            for kind in ("prim::SetAttr", "prim::GetAttr"):
                names |= dict.fromkeys(node.s("name") for node in graph.findAllNodes(kind))
        children = {name for name, _ in module.named_children()}
        mine = (n for n in names if module._c.hasattr(n) and n not in children)
        _names[module] = found = tuple(mine)
    return found
