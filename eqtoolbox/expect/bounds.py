"""Bounds: conditions beyond a type, written into an annotation: `Annotated[int, at_least(1)]`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """What must hold of a value that has the annotation's type."""

    words: str  # after "must be"
    holds: Callable[[Any], bool]
    remedy: str = ""
    whole: bool = False  # the words name the type, too


def instance(words: str, remedy: str = "") -> Bound:
    """Any object of the type, called by these words."""
    return Bound(words, lambda _: True, remedy, whole=True)


OWN = Bound("", lambda _: True)  # the function itself looks at what it is given


def count(low: int) -> Bound:
    """Integers that count things, at least `low`."""
    return Bound(f"an integer >= {low}", lambda n: bool(n >= low), whole=True)


def at_least(low: float, remedy: str = "") -> Bound:
    """Numbers that are no smaller than `low`."""
    return Bound(f">= {low}", lambda x: bool(x >= low), remedy)


def between(low: int, high: int, remedy: str = "") -> Bound:
    """Numbers from `low` to `high`."""
    return Bound(f"from {low} to {high}", lambda x: bool(low <= x <= high), remedy)


def some(words: str) -> Bound:
    """Lists that are not empty, of these."""
    return Bound(f"one or more {words}", lambda x: len(x) > 0, whole=True)


def takes(
    count: int, form: str, remedy: str = "", *, more: bool = False, classes: bool = False
) -> Bound:
    """Functions that can be called with `count` arguments; a class is none of them.

    Args:
        count: of arguments, given by their places.
        form: what stands after "a function".
        remedy: what to do where it is none.
        more: further arguments may be needed.
        classes: a class is called to make what is wanted.

    Example:
        >>> takes(2, "(g, x) -> gx").holds(lambda g: g)
        False
    """

    def holds(function: Any) -> bool:
        if isinstance(function, type) and not classes:
            return False
        try:
            signature = inspect.signature(getattr(function, "forward", function))  # of a module
        except (ValueError, TypeError):  # built in, or compiled: it may take anything
            return True
        try:
            (signature.bind_partial if more else signature.bind)(*(None,) * count)
        except TypeError:
            return False
        return True

    return Bound(f"a function {form}", holds, remedy, whole=True)
