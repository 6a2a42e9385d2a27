"""Described: what run.json says of a run, checked, so that the report can rely on it."""

import reprlib
from collections.abc import Callable, Iterator
from typing import Any

YEAR_9999 = 253_370_764_800.0  # seconds since 1970
LONGEST = 500  # letters of a word

Check = Callable[[Any], bool]


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e100


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _whole(value: Any) -> bool:
    return type(value) is int


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _time(value: Any) -> bool:
    return _number(value) and 0 <= value < YEAR_9999


def _share(value: Any) -> bool:
    return _number(value) and value >= 0


_WANTED: dict[Check, str] = {
    _word: f"a text of at most {LONGEST} letters",
    _number: "a number",
    _count: "an int >= 0",
    _whole: "an int",
    _flag: "true or false",
    _time: "seconds since 1970",
    _share: "a number >= 0",
}
_GROUP = {"lr": _number, "weight_decay": _number, "momentum": _number, "maximize": _flag}
_SYMMETRY = {
    "name": _word, "family": _word, "dimension": _count, "status": _word, "residual": _number,
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "format": _count, "eqtoolbox": _word, "torch": _word, "python": _word, "platform": _word,
    "started": _time, "finished": _time, "segments": _count, "processes": _count,
    "model": {"class": _word, "parameters": _count, "trainable": _count},
    "optimizer": {"class": _word, "groups": [_GROUP]},
    "budget": _share, "seed": _whole, "device": _word, "dtype": _word, "preset": _word,
    "probes": {}, "symmetries": [_SYMMETRY],
}  # fmt: skip


def sound(info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What is as it must be, and what is wrong with the others.

    What later versions add is kept as it is, and None is kept for what is not known.

    Example:
        >>> sound({"started": "x", "segments": 2})
        ({'segments': 2}, ["started must be seconds since 1970, got 'x'"])
    """
    wrong: list[str] = []
    kept = dict(_fields(info, _SHAPE, "", wrong))
    return kept, wrong


def _fields(
    values: dict[str, Any], shape: dict[str, Any], place: str, wrong: list[str]
) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        wanted: Any = shape.get(key)
        if value is None or wanted is None:
            yield key, value
        elif isinstance(wanted, dict) and isinstance(value, dict):
            yield key, dict(_fields(value, wanted, f"{place}{key}.", wrong))
        elif isinstance(wanted, list) and isinstance(value, list):
            whole = [v for v in value if isinstance(v, dict)]
            if len(whole) < len(value):
                wrong.append(f"{place}{key} must be a list of objects")
            yield key, [dict(_fields(v, wanted[0], f"{place}{key}.", wrong)) for v in whole]
        elif callable(wanted) and wanted(value):
            yield key, value
        else:
            kinds: dict[Any, str] = {dict: "an object", list: "a list"}
            said = kinds.get(type(wanted)) or _WANTED[wanted]
            wrong.append(f"{place}{key} must be {said}, got {reprlib.repr(value)}")
