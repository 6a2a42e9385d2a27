"""The fields of a probe's class as a file sees them: which it can write, and what fits them."""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.expect.fit import Unexpected, fitted
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.watch.probe import Probe

LISTS = (tuple, list, set, frozenset, Sequence)
WRITTEN = (bool, int, float, str, dict, Mapping, *LISTS)  # what a TOML value can be


def kinds_of(probe: type[Probe]) -> dict[str, Any]:
    """The types of what a probe's constructor takes by name; `Any` where nobody can tell."""
    given: tuple[Field[Any], ...] = fields(probe) if is_dataclass(probe) else ()
    own = {f.name: f.type for f in given if f.init}
    names = getattr(inspect.unwrap(probe.measure), "__globals__", {})
    told: Any = SimpleNamespace(__annotations__=own, __globals__=names)
    try:
        return get_type_hints(told, include_extras=True)
    except (NameError, AttributeError, SyntaxError):  # of names that only type checkers see
        return {name: Any if isinstance(kind, str) else kind for name, kind in own.items()}


def written(kind: Any) -> bool:
    """Whether a file can write what fits: numbers, texts, lists and tables, no objects.

    Example:
        >>> written(int | None), written(tuple[str, ...]), written(object)
        (True, True, False)
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return written(parts[0])
    if origin in (Union, UnionType):
        return any(map(written, parts))
    return kind is Any or origin is Literal or origin in WRITTEN


def claims(kind: Any) -> bool:
    """Whether a field holds symmetries that are claimed, by name or as objects."""
    return _many(kind) and _mentions(kind, Equivariance)


def checked_option(value: Any, kind: Any, where: str) -> Any:
    """What the constructor is given for a value of the file: lists as tuples where it says so.

    Raises:
        ConfigError: the value does not fit the field's annotation; ints pass for floats.
    """
    if get_origin(kind) is Annotated:  # its bounds are looked at by the constructor
        return checked_option(value, get_args(kind)[0], where)
    if claims(kind):
        kind = tuple[str, ...]
    try:
        return _as_tuples(fitted(where, value, kind), kind)
    except Unexpected as error:
        of_the_type = type(value) is kind  # NaN, an int of 80 bits
        wanted = "" if of_the_type else _worded(kind)
        said = f"{where}: expected {wanted}, got {value!r}" if wanted else str(error)
        raise ConfigError(said) from error


def _worded(kind: Any) -> str:
    """What fits a simple type, in the words of a file."""
    parts = get_args(kind)
    if get_origin(kind) is tuple and parts[1:] == (...,) and isinstance(parts[0], type):
        return f"a list of {parts[0].__name__}"
    if get_origin(kind) is Literal:
        return f"one of {parts}"
    return kind.__name__ if kind in (bool, int, float, str) else ""


def _as_tuples(value: Any, kind: Any) -> Any:
    """The value with a tuple for each list that the annotation calls one, however deep."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return next((_as_tuples(value, part) for part in parts if _fits(value, part)), value)
    if origin is Annotated:
        return _as_tuples(value, parts[0])
    if origin is tuple:
        kinds = itertools.repeat(parts[0]) if parts[1:] == (...,) else parts
        return tuple(map(_as_tuples, value, kinds))
    return tuple(value) if kind is tuple else value


def _fits(value: Any, kind: Any) -> bool:
    try:
        fitted("", value, kind)
    except Unexpected:
        return False
    return True


def _many(kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    return _many(parts[0]) if origin is Annotated else origin in LISTS


def _mentions(kind: Any, wanted: type) -> bool:
    return kind is wanted or any(_mentions(part, wanted) for part in get_args(kind))
