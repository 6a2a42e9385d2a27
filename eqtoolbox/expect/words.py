"""Words: annotations and values as an error message says them."""

import inspect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from eqtoolbox.expect.bounds import Bound

NUMBERS = {int: "an integer", float: "a number", bool: "True or False"}
LISTS: tuple[Any, ...] = (tuple, list, Sequence, Iterable, Collection)
_NOUNS = {
    NoneType: "None",
    str: "a string",
    Any: "anything",
    "Callable": "a function",
    "PathLike": "a path",
    "Path": "a path",
    "Module": "an nn.Module",
    "Generator": "a torch.Generator",
}


def said(kind: Any) -> str:
    """An annotation in words.

    Example:
        >>> said(int | None), said(Sequence[str])
        ('an integer or None', 'a list of strings')
    """
    origin, parts = get_origin(kind), get_args(kind)
    plain = origin or kind
    if origin is Annotated:
        bound = next((part for part in parts[1:] if isinstance(part, Bound)), None)
        if bound is not None and (bound.whole or parts[0] is float):
            return bound.words
        return said(parts[0]) if bound is None else f"{said(parts[0])} {bound.words}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(said(part) for part in parts))
    if origin is Literal:
        return f"one of {parts}"
    if kind in NUMBERS:
        return NUMBERS[kind]
    if plain is tuple and parts and parts[-1] is not Ellipsis:
        return f"{len(parts)} {_plural(said(parts[0]))}"
    if plain in LISTS:
        return f"a list{_of(parts[:1])}"
    if inspect.isclass(plain) and issubclass(plain, Mapping):
        return f"a dict{_of(parts[1:])}"
    name = getattr(plain, "__name__", str(plain))
    article = "an" if name[0] in "AEIO" else "a"
    return _NOUNS.get(plain, _NOUNS.get(name, f"{article} {name}"))


def _of(parts: Sequence[Any]) -> str:
    return "" if not parts or parts[0] is Any else f" of {_plural(said(parts[0]))}"


def _plural(words: str) -> str:
    """`numbers` for `a number`, `lists of numbers` for `a list of numbers`."""
    article, _, rest = words.partition(" ")
    if article not in ("a", "an"):
        return words
    noun, *more = rest.split(" ")
    return " ".join([f"{noun}s", *more])


def shown(value: Any) -> str:
    """A value as an error shows it: short things as they are, others by their type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__name__}"
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return type(value).__name__
    try:
        text = repr(value)
    except Exception:  # of the user's own class
        return type(value).__name__
    return text if len(text) <= 80 and "\n" not in text else type(value).__name__


def remedy(value: Any, plain: Any) -> str:
    """What to do about a value of a kind that is often given for another."""
    if isinstance(value, type) and isinstance(plain, type) and issubclass(value, plain):
        return "did you forget ()?"
    if type(value).__module__ == "numpy" and getattr(plain, "__name__", "") == "Tensor":
        return "use torch.as_tensor(array)"
    if isinstance(value, str) and plain in (int, float) and _number(value):
        return "write it without quotes"
    if isinstance(value, str) and plain in LISTS:
        return f"one alone is written [{value!r}]"
    if inspect.isgenerator(value) and isinstance(plain, type) and issubclass(plain, Mapping):
        return "give them by name: dict(model.named_parameters())"
    return ""


def _number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
