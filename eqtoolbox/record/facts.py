"""Facts: what a record says beside its number, in values that a program can rely on."""

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

Scalar = str | int | float | bool
Fact = Scalar | tuple[Scalar, ...]

MOST = 32  # facts of a record
LARGEST = 2**53  # integers below are exact in every reader of JSON
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Facts(Mapping[str, Fact]):
    """Named facts, frozen: texts, integers, finite numbers, booleans, and tuples of such.

    Whoever reads one asks for its kind, so that nothing else can come.

    Args:
        given: the facts; lists become tuples, numbers of any library Python's own.

    Raises:
        ValueError: there is something else among them; says what and under which name.

    Example:
        >>> facts = Facts({"layer": "conv1", "units": [3, 5], "pair": True})
        >>> facts.text("layer"), facts.texts("units"), facts.flag("pair"), facts.number("factor")
        ('conv1', (), True, None)
        >>> facts["units"]
        (3, 5)
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping) or len(given) > MOST:
            raise ValueError(
                f"facts must be an object of at most {MOST} facts, got {reprlib.repr(given)}"
            )
        self._values: dict[str, Fact] = {_name(k): _fact(k, v) for k, v in given.items()}

    def text(self, name: str) -> str:
        """The text of this name; empty where there is none."""
        value = self._values.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        """The number of this name, None where there is none."""
        value = self._values.get(name)
        return value if type(value) in (int, float) else None  # type: ignore[return-value]

    def count(self, name: str) -> int | None:
        """The integer >= 0 of this name, None where there is none."""
        value = self._values.get(name)
        return value if type(value) is int and value >= 0 else None

    def flag(self, name: str) -> bool:
        """Whether this is said to be so."""
        return self._values.get(name) is True

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of this name; none where there is anything else."""
        value = self._values.get(name)
        if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
            return value  # type: ignore[return-value]
        return ()

    def counts(self, name: str) -> tuple[int, ...]:
        """The integers >= 0 of this name; none where there is anything else."""
        value = self._values.get(name)
        if isinstance(value, tuple) and all(type(v) is int and v >= 0 for v in value):
            return value  # type: ignore[return-value]
        return ()

    def numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of this name; none where there is anything else."""
        value = self._values.get(name)
        if isinstance(value, tuple) and all(type(v) in (int, float) for v in value):
            return value  # type: ignore[return-value]
        return ()

    def to_json(self) -> dict[str, Any]:
        """The same as strict JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._values.items()}

    def written(self) -> str:
        """The same as one text, empty for no facts; see `read`."""
        return json.dumps(self.to_json(), separators=(",", ":")) if self._values else ""

    @classmethod
    def read(cls, text: str) -> "Facts":
        """The facts that `written` wrote."""
        return cls(json.loads(text)) if text else NO_FACTS

    def __getitem__(self, name: str) -> Fact:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Facts({self._values!r})"


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "names of facts must be 1 to 40 letters of [a-z0-9_], the first one of [a-z], "
            f"got {reprlib.repr(name)}"
        )
    return name


def _fact(name: str, value: Any) -> Fact:
    if isinstance(value, list | tuple):
        return tuple(_scalar(name, v) for v in value)
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> Scalar:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral) and abs(int(value)) < LARGEST:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral) and math.isfinite(value):
        return float(value)
    raise ValueError(
        f"the fact {name!r} must be a text, an integer below 2**53, a finite number, true or false "
        f"or a list of such, got {reprlib.repr(value)}; leave out what is not known"
    )


NO_FACTS = Facts({})
