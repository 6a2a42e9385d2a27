"""A record: one measured number of one step, with its error, its status and what it cost."""

import math
import re
import reprlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from eqtoolbox.record.facts import NO_FACTS, Facts

Status = Literal[
    "ok",
    "not_applicable",
    "not_converged",
    "non_finite",
    "failed",
    "skipped_budget",
    "skipped_memory",
]
Verdict = Literal["holds", "violated", "unresolved", "trivial"]
Mode = Literal["train", "eval"]
Product = Literal["held", "differenced"]

_STATUSES, _VERDICTS, _MODES = get_args(Status), get_args(Verdict), get_args(Mode)
_PRODUCTS = get_args(Product)
LONGEST = 200  # characters of a name
LAST = 2**53  # steps and counts below are exact in every reader of JSON
SEGMENTS = 2**31  # more than any run is resumed
FORMAT = 2  # of the oldest rows of a run: 2 has facts beside notes
HOLDS, VIOLATED = 3.0, 10.0  # verdict thresholds, in floors

_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_FOREIGN = re.compile(r"[^A-Za-z0-9_./-]")
_PLAIN, _MAY_BE_EMPTY = (str, int), (str, Facts)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One number measured at one optimizer step.

    Example:
        >>> Record(step=3, name="curvature/sharpness", value=1.5).probe
        'curvature'
    """

    step: int  # optimizer steps taken before this one, so the first step is 0
    name: str  # probe/quantity[/target], up to 200 letters of [A-Za-z0-9_./-]
    value: float  # NaN when the status says that there is no number
    stderr: float | None = None  # standard error of an estimate, Ritz residual of an eigenvalue
    floor: float | None = None  # what rounding and sampling alone produce, in the value's unit
    unit: str = "1"
    status: Status = "ok"
    verdict: Verdict | None = None
    mode: Mode | None = None  # train: as the step ran it; eval: evaluation mode
    seconds: float | None = None  # of the whole probe that measured it
    matvecs: int | None = None  # Hessian-vector products behind it
    note: str = ""  # for people: why there is no number, or which unit or layer it is about
    facts: Facts = NO_FACTS  # the same for programs, typed; no program reads a note
    segment: int = 0  # 0 for the first start of a run, one more after each resume
    # what the probe's second derivatives are, if not those of the loss, exact: held where a part
    # is detached or has a gradient of its own, differenced where they are differences of gradients
    hessian: Product | None = None

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise ValueError(f"status must be one of {_STATUSES}, got {self.status!r}")
        if type(self.facts) is not Facts:
            object.__setattr__(self, "facts", Facts(self.facts))

    @property
    def probe(self) -> str:
        """The first word of the name: the probe that measured it."""
        return self.name.split("/", 1)[0]

    def to_json(self) -> dict[str, Any]:
        """Fields as strict JSON values: NaN and infinities become strings, empty fields go."""
        return {
            k: v if type(v) in _PLAIN else _encode(v)
            for k, v in vars(self).items()
            if v is not None and (v or type(v) not in _MAY_BE_EMPTY)
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Record":
        """The record that `to_json` wrote; fields of later versions are ignored.

        Raises:
            ValueError: a field is missing, or not what a record holds; says which and what came.
        """
        return cls.of(checked(row))

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> "Record":
        """The record of values that are `checked` already, in the order of the fields."""
        record = object.__new__(cls)
        vars(record).update(zip(FIELDS, values, strict=True))
        return record


FIELDS = tuple(Record.__dataclass_fields__)


def verdict(error: float, floor: float) -> Verdict:
    """Whether a law with this residual holds: up to 3 floors it does, above 10 it does not.

    The fourth verdict, `trivial`, is for what holds because there is nothing that could break it.

    Example:
        >>> verdict(2e-7, 1e-7), verdict(5e-7, 1e-7), verdict(1e-3, 1e-7)
        ('holds', 'unresolved', 'violated')
    """
    if error <= HOLDS * floor:
        return "holds"
    return "violated" if error > VIOLATED * floor else "unresolved"  # NaN is unresolved too


def checked(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The fields of a row as `to_json` wrote it, in the order of `FIELDS`, each what it must be.

    Raises:
        ValueError: one is not; says which and what came.
    """
    get = row.get
    name, segment = get("name"), get("segment", 0)
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(name_wanted(name))
    return (
        _count(get("step"), "step", LAST),
        name,
        _number(get("value"), "value"),
        None if (stderr := get("stderr")) is None else _number(stderr, "stderr"),
        None if (floor := get("floor")) is None else _number(floor, "floor"),
        _text(get("unit", "1"), "unit"),
        _choice(get("status", "ok"), "status", _STATUSES),
        None if (word := get("verdict")) is None else _choice(word, "verdict", _VERDICTS),
        None if (mode := get("mode")) is None else _choice(mode, "mode", _MODES),
        None if (seconds := get("seconds")) is None else _number(seconds, "seconds"),
        None if (matvecs := get("matvecs")) is None else _count(matvecs, "matvecs", LAST),
        _text(get("note", ""), "note"),
        NO_FACTS if (said := get("facts")) is None else Facts(said),
        _count(segment, "segment", SEGMENTS),
        None if (made := get("hessian")) is None else _choice(made, "hessian", _PRODUCTS),
    )


def is_name(name: str) -> bool:
    """Whether a text can be the name of a record.

    Example:
        >>> is_name("curvature/eigenvalue/1"), is_name("a b"), is_name("x" * 201)
        (True, False, False)
    """
    return len(name) <= LONGEST and _NAME.fullmatch(name) is not None


def spelled(name: str) -> str:
    """A name in the letters that names have: others become "_", and what is too long is cut.

    Example:
        >>> spelled("equivariance/relative_error/turn by 90\N{DEGREE SIGN}")
        'equivariance/relative_error/turn_by_90_'
    """
    if is_name(name):
        return name
    name = _FOREIGN.sub("_", name)
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{zlib.crc32(name.encode()):08x}"  # long names stay apart


def name_wanted(name: Any) -> str:
    """What to say of a name that is none."""
    return f"name must be 1 to {LONGEST} letters of [A-Za-z0-9_./-], got {reprlib.repr(name)}"


def _count(value: Any, field: str, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{field} must be an int >= 0, got {reprlib.repr(value)}")
    return value


def _number(value: Any, field: str) -> float:
    if type(value) is float:
        return value
    try:
        return float(value) if type(value) is int else _NON_FINITE[value]
    except (KeyError, TypeError, OverflowError):
        raise ValueError(f"{field} must be a number, got {reprlib.repr(value)}") from None


def _text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise ValueError(f"{field} must be a text, got {reprlib.repr(value)}")
    return value


def _choice(value: Any, field: str, choices: tuple[str, ...]) -> str:
    if type(value) is not str or value not in choices:
        raise ValueError(f"{field} must be one of {choices}, got {reprlib.repr(value)}")
    return value


def _encode(value: Any) -> Any:
    if type(value) is Facts:
        return value.to_json()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
