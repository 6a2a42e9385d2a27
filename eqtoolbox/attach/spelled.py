"""Spelled: a function of one object, called with the arguments of that object's constructor."""

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")
OTHERS = "    The others are those of "  # what their lines take the place of in a docstring


def spelled(arguments: Callable[P, A], others: Any) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """Decorate a function of one object: callers write the arguments of the object's constructor.

    Editors and type checkers see them as parameters of the function, and so does `help`, whose
    text has the lines on them that the class wrote.

    Args:
        arguments: class of the object that the function takes.
        others: class whose docstring has the arguments that the function's own leaves out.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> @spelled(Point, Point)
        ... def length(point: Point) -> float:
        ...     return (point.x**2 + point.y**2) ** 0.5
        >>> length(3, y=4), str(inspect.signature(length))
        (5.0, '(x: int, y: int = 0) -> float')
    """
    kinds = get_type_hints(arguments)  # without the bounds, which would fill a screen of `help`
    given = inspect.signature(arguments)
    signature = given.replace(
        parameters=[p.replace(annotation=kinds[n]) for n, p in given.parameters.items()]
    )

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                known = list(signature.parameters)
                near = [m for k in kwargs if k not in known for m in get_close_matches(k, known, 1)]
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{function.__name__}() {error}{hint}") from None
            return function(arguments(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        whole = signature.replace(return_annotation=returned)
        call.__signature__ = whole  # type: ignore[attr-defined]
        call.__annotations__ = kinds | {"return": returned}
        call.__doc__ = _joined(function.__doc__, others.__doc__)
        return call

    return decorate


def entries(doc: str | None) -> str:
    """The lines of a docstring's `Args:`, indented by four spaces; empty without one."""
    _, _, after = inspect.cleandoc(doc or "").partition("\nArgs:\n")
    return after.partition("\n\n")[0]


def _joined(doc: str | None, others: str | None) -> str | None:
    """A docstring with the entries of another where it names its others."""
    if doc is None:  # python -OO
        return None
    lines = inspect.cleandoc(doc).splitlines()
    return "\n".join(entries(others) if line.startswith(OTHERS) else line for line in lines)
