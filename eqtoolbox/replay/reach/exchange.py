"""Exchange: what a replay finds instead of things that it could not put back once they had moved.

A copy where one can be made that goes on by itself; else a stand-in that refuses (see
`eqtoolbox.replay.reach.standin`). What holds such a thing and cannot be written is made anew
around it.
"""

import copy
import decimal
import functools
from types import BuiltinFunctionType, MethodType, MethodWrapperType
from typing import Any

import numpy as np

from eqtoolbox.replay.reach.kinds import ITERATORS, tracks
from eqtoolbox.replay.reach.standin import Silent, StandIn
from eqtoolbox.replay.reach.walk import said

_OVER = (zip, map, filter, enumerate)  # iterators over others, which say what they were made from
_CACHE = type(functools.lru_cache(lambda: None))


def copied(thing: Any) -> Any:
    """One that goes on from where it is by itself; None where that cannot be made."""
    if type(thing) is _CACHE:
        given = thing.cache_parameters()
        return functools.lru_cache(given["maxsize"], given["typed"])(thing.__wrapped__)
    if isinstance(thing, np.random.SeedSequence):
        return np.random.SeedSequence(**thing.state)
    if type(thing) in (*ITERATORS, *_OVER) or isinstance(thing, decimal.Context):
        try:
            return copy.copy(thing)
        except TypeError:  # not this one, or not in this Python
            return None
    return None


def remade(holders: list[tuple[Any, tuple[Any, ...]]], made: dict[int, Any]) -> None:
    """Make anew what holds things that are exchanged, the inner ones first.

    Args:
        holders: things that cannot be written, with what they hold.
        made: what is exchanged by the id of what it stands for; more is added.
    """
    inside = {id(holder): (holder, parts) for holder, parts in holders}
    waiting, opened, done = [*inside], set[int](), set[int]()
    while waiting:
        here = waiting[-1]
        holder, parts = inside[here]
        if here not in opened:
            opened.add(here)
            waiting += [id(x) for x in parts if id(x) in inside and id(x) not in opened]
            continue
        waiting.pop()
        moves = here not in done and any(id(part) in made for part in parts)
        done.add(here)
        if moves and not isinstance(made.get(here), StandIn):
            made[here] = _remade(holder, parts, made)


def _remade(holder: Any, parts: tuple[Any, ...], made: dict[int, Any]) -> Any:
    """A holder around what stands in for its parts."""
    inner = next(made[id(part)] for part in parts if id(part) in made)
    if isinstance(holder, tuple):
        new = [made.get(id(part), part) for part in holder]
        return holder._make(new) if hasattr(holder, "_make") else tuple(new)
    if isinstance(inner, StandIn):
        return type(inner)(holder, object.__getattribute__(inner, "_eqtoolbox_why"))
    if isinstance(holder, MethodType):
        return MethodType(holder.__func__, inner)
    if isinstance(holder, BuiltinFunctionType | MethodWrapperType):
        return getattr(inner, holder.__name__)
    if type(holder) in _OVER:
        return _over(holder, made)
    return StandIn(holder, why(holder, (None, type(holder).__name__)))


def _over(holder: Any, made: dict[int, Any]) -> Any:
    kind, given, *state = holder.__reduce__()
    new = kind(*(made.get(id(part), part) for part in given))
    if state:
        new.__setstate__(*state)
    return new


def stand_in(thing: Any, path: Any) -> StandIn:
    """A tracker says nothing; anything else refuses to be touched."""
    return Silent(thing, "") if tracks(type(thing)) else StandIn(thing, why(thing, path))


def why(thing: Any, path: Any) -> str:
    """What is said when it is touched."""
    name = type(thing).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return (
        f"the loss uses {said(path)}, {article} {name} that cannot be put back once it has "
        "moved: evaluating the loss again would change the training, so that probes that do are "
        "switched off; use it outside the loss and hand over what comes out"
    )
