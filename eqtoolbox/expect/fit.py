"""Fit: whether a value is what an annotation says."""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from eqtoolbox.expect.bounds import OWN, Bound
from eqtoolbox.expect.words import LISTS, NUMBERS, remedy, said, shown


class Unexpected(TypeError, ValueError):
    """An argument is not what was expected; the message says what was, what came, what to do.

    Both a TypeError and a ValueError, as Python's own line between them is a fine one.
    """

    name = expected = do = ""
    value: Any = None
    near = False  # it fits but for its range, or for an item

    @classmethod
    def of(
        cls, name: str, expected: str, value: Any, do: str = "", *, near: bool = False
    ) -> "Unexpected":
        """The error of an argument; in words when they are asked for, as large values take long."""
        error = cls()
        error.name, error.expected, error.value, error.do = name, expected, value, do
        error.near = near
        return error

    def __str__(self) -> str:
        said = f"{self.name} must be {self.expected}, got {shown(self.value)}"
        return f"{said}; {self.do}" if self.do else said


def fitted(name: str, value: Any, kind: Any) -> Any:
    """The value, if it fits an annotation; integers and numbers as Python's own.

    Integers are those of any library, of 64 bits, and no booleans; numbers are no NaN; a class is
    no instance of itself; a string is no list.

    Raises:
        Unexpected: it does not fit.

    Example:
        >>> from eqtoolbox.expect.bounds import at_least
        >>> fitted("k", 3.5, Annotated[int, at_least(1)])
        Traceback (most recent call last):
        eqtoolbox.expect.fit.Unexpected: k must be an integer >= 1, got 3.5
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if origin is Annotated:
        return value if OWN in parts else _bounded(name, value, kind)
    if origin in (Union, UnionType):
        return _one_of(name, value, kind)
    if kind in NUMBERS:
        return _number(name, value, kind)
    if origin is Literal:
        if not isinstance(value, str) or value not in parts:
            near = difflib.get_close_matches(str(value), [str(part) for part in parts], 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise Unexpected.of(name, said(kind), value, hint)
        return value
    plain: Any = origin or kind
    wanted = Iterable if plain in LISTS else plain
    no_list = isinstance(value, str | bytes | Mapping) and plain in LISTS
    if no_list or not isinstance(value, wanted):
        raise Unexpected.of(name, said(kind), value, remedy(value, plain))
    if plain in LISTS and isinstance(value, Iterator):
        value = list(value)  # once looked through, it would be used up
    if parts and plain in LISTS:
        _items(name, value, kind)
    elif parts and isinstance(value, Mapping):
        for key, item in value.items():
            _item(f"{name}[{key!r}]", item, parts[1])
    return value


def _bounded(name: str, value: Any, kind: Any) -> Any:
    inner, *rest = get_args(kind)
    bound = next((part for part in rest if isinstance(part, Bound)), None)
    try:
        value = fitted(name, value, inner)
    except Unexpected as error:
        if bound is None or error.near:
            raise
        raise Unexpected.of(name, said(kind), value, error.do or bound.remedy) from None
    if bound is not None and not _holds(bound, value):
        do = bound.remedy or ("did you forget ()?" if isinstance(value, type) else "")
        raise Unexpected.of(name, bound.words, value, do, near=True)
    return value


def _holds(bound: Bound, value: Any) -> bool:
    try:
        return bound.holds(value)
    except Exception:  # what cannot be asked is not so
        return False


def _one_of(name: str, value: Any, kind: Any) -> Any:
    """The value as the first kind that it fits; else the error of the kind that it nearly fits."""
    kinds, errors = get_args(kind), []
    for one in kinds:
        try:
            return fitted(name, value, one)
        except Unexpected as error:
            errors.append(error.with_traceback(None))  # whose frames would hold this list
            error.__context__ = None
    for nearly in (error for error in errors if error.near):
        none = " or None" if NoneType in kinds and nearly.name == name else ""
        raise Unexpected.of(nearly.name, nearly.expected + none, nearly.value, nearly.do, near=True)
    hints = filter(None, (error.do for error in errors))
    raise Unexpected.of(name, said(kind), value, next(hints, ""))


def _number(name: str, value: Any, kind: Any) -> Any:
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        if kind is bool and truth:
            return bool(value)
        if kind is int and not truth:
            whole = operator.index(value)
            if -(2**63) <= whole < 2**64:
                return whole
        if kind is float and not truth and not isinstance(value, str | bytes):
            number = value if isinstance(value, numbers.Real) else value.item()
            if not math.isnan(number):
                return number if type(number) is int and abs(number) < 2**53 else float(number)
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError):
        pass
    raise Unexpected.of(name, NUMBERS[kind], value, remedy(value, kind))


def _items(name: str, value: Any, kind: Any) -> None:
    parts: Sequence[Any] = get_args(kind)
    each = get_origin(kind) is tuple and parts[-1] is not Ellipsis
    if each and len(value) != len(parts):
        raise Unexpected.of(name, said(kind), value)
    for i, item in enumerate(value):
        _item(f"{name}[{i}]", item, parts[i] if each else parts[0])


def _item(name: str, item: Any, kind: Any) -> None:
    try:
        fitted(name, item, kind)
    except Unexpected as error:
        error.near = True
        raise
