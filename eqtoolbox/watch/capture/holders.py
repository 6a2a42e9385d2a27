"""Holders: other optimizers of the process that hold the parameters of the attached ones."""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def holders(attached: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, Any]]:
    """Other optimizers of this process over the same parameters, and how they are told.

    `".base"` is an attribute of an attached one that holds it, `"base"` one of its own that holds
    an attached one; empty where neither does.
    """
    own = {id(p) for o in attached for g in o.param_groups for p in g["params"]}
    for found in gc.get_objects():
        if not issubclass(type(found), torch.optim.Optimizer) or any(found is o for o in attached):
            continue
        groups = getattr(found, "param_groups", ())
        if not any(id(p) in own for g in groups for p in g["params"]):
            continue
        inner = [f".{n}" for o in attached for n, v in vars(o).items() if v is found]
        outer = [n for n, v in vars(found).items() if any(v is o for o in attached)]
        yield next(iter([*inner, *outer]), ""), found


def instead(attached: Sequence[torch.optim.Optimizer]) -> str:
    """What to attach, where the attached optimizers never step although the parameters move."""
    others = [(where, type(o).__name__) for where, o in holders(attached)]
    inside = [f"its {where}, {kind}," for where, kind in others if where.startswith(".")]
    if inside:
        return f"{inside[0]} holds the same parameters: attach that one, or call step() itself"
    kinds = ", ".join(dict.fromkeys(kind for _, kind in others))
    found = f"there is another over the same parameters ({kinds}); " if kinds else ""
    return f"{found}attach the torch optimizer whose step() the loop calls"


def around(attached: Sequence[torch.optim.Optimizer]) -> str:
    """The optimizer that holds the attached one inside, such as SAM its base; empty without."""
    found = [type(o).__name__ for where, o in holders(attached) if where and where[0] != "."]
    return found[0] if found else ""
