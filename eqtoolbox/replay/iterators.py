"""Iterators of Python's own: which are copied where they are, and what they say of themselves."""

import itertools
import warnings
from collections import deque
from typing import Any

from eqtoolbox.replay.kinds import ITERATORS

OVER = (  # over others, which say what they were made from
    zip, map, filter, enumerate, itertools.accumulate, itertools.chain, itertools.combinations,
    itertools.compress, itertools.cycle, itertools.dropwhile, itertools.islice,
    itertools.permutations, itertools.product, itertools.starmap, itertools.takewhile,
    itertools.zip_longest,
)  # fmt: skip
_SOME: dict[int, int] = {}
ALONE = (  # over containers
    *ITERATORS,
    type(iter(_SOME)), type(iter(_SOME.values())), type(iter(_SOME.items())),
    type(reversed(_SOME)), type(reversed(_SOME.values())), type(reversed(_SOME.items())),
    type(iter(set[int]())), type(iter(deque[int]())), type(reversed(deque[int]())),
)  # fmt: skip


def inner(thing: Any) -> list[Any]:
    """What an iterator over others goes on with; nothing where it does not say.

    The tuples that some keep in C are not for reading: they have holes.

    Example:
        >>> count = itertools.count()
        >>> inner(zip(count, [1]))[0] is count
        True
    """
    try:
        _, given, *state = _reduced(thing)
    except TypeError:
        return []
    more = [part for one in state for part in (one if type(one) is tuple else (one,))]
    return [*given, *more]


def going_on(thing: Any, made: dict[int, Any]) -> Any:
    """An iterator that goes on from where this one is, over stand-ins of what it is over.

    Raises:
        TypeError: it does not say where it is: not this one, or not in this Python.
    """
    kind, given, *state = _reduced(thing)
    new = kind(*(made.get(id(part), part) for part in given))
    for one in state:
        if one is not None:
            new.__setstate__(_state(one, made))
    return new


def _reduced(thing: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on
        return thing.__reduce__()


def _state(given: Any, made: dict[int, Any]) -> Any:
    """Its own lists are its own, and what it is over is exchanged."""
    if type(given) is tuple:
        return tuple([*one] if type(one) is list else made.get(id(one), one) for one in given)
    return made.get(id(given), given)
