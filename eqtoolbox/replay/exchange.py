"""Exchange: what a replay finds instead of things that it could not put back once they had moved.

A copy where one can be made that goes on by itself; else a stand-in that refuses (see
`eqtoolbox.replay.standin`). What holds such a thing and cannot be written is made anew around it.
"""

import copy
import decimal
import functools
import itertools
from types import BuiltinFunctionType, MethodType, MethodWrapperType
from typing import Any

import numpy as np

from eqtoolbox.replay.iterators import ALONE, OVER, going_on
from eqtoolbox.replay.kinds import LARGE, is_table, tracks
from eqtoolbox.replay.standin import Silent, StandIn
from eqtoolbox.replay.walk import said

_CACHE = type(functools.lru_cache(lambda: None))


def copied(thing: Any) -> Any:
    """One that goes on from where it is by itself; None where that cannot be made."""
    if type(thing) is _CACHE:
        given = thing.cache_parameters()
        return functools.lru_cache(given["maxsize"], given["typed"])(thing.__wrapped__)
    if isinstance(thing, np.random.SeedSequence):
        return np.random.SeedSequence(**thing.state)
    try:
        if type(thing) in OVER:
            return going_on(thing, {})
        if type(thing) in ALONE or isinstance(thing, decimal.Context):
            return copy.copy(thing)
    except (TypeError, RuntimeError):  # not this one, or not in this Python; its dict has changed
        return None
    return _table(thing) if is_table(type(thing)) else None


def _table(thing: Any) -> Any:
    """A copy of a table of pandas that is not too large."""
    parts = thing.memory_usage(index=True)
    return thing.copy(deep=True) if int(np.sum(parts)) <= LARGE else None


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
            made[here] = _remade(made.get(here, holder), parts, made)


def _remade(holder: Any, parts: tuple[Any, ...], made: dict[int, Any]) -> Any:
    """A holder around what stands in for its parts."""
    others = [made[id(part)] for part in parts if id(part) in made]
    inside = itertools.chain.from_iterable(one if type(one) is tuple else (one,) for one in others)
    inner = next((one for one in inside if isinstance(one, StandIn)), others[0])
    if isinstance(holder, tuple):
        new = [made.get(id(part), part) for part in holder]
        return holder._make(new) if hasattr(holder, "_make") else tuple(new)
    if isinstance(inner, StandIn):
        return type(inner)(holder, object.__getattribute__(inner, "_eqtoolbox_why"))
    if isinstance(holder, MethodType):
        return MethodType(holder.__func__, inner)
    if isinstance(holder, BuiltinFunctionType | MethodWrapperType):
        return getattr(inner, holder.__name__)
    if type(holder) in (*OVER, *ALONE):
        return going_on(holder, made)
    return StandIn(holder, why(holder, (None, type(holder).__name__)))


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
