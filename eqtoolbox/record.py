"""A record: one measured number of one step, with its error, its status and what it cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Status = Literal["ok", "not_applicable", "not_converged", "non_finite", "failed", "skipped_budget"]
Verdict = Literal["holds", "violated", "unresolved"]
Mode = Literal["train", "eval"]

_STATUSES = get_args(Status)
HOLDS, VIOLATED = 3.0, 10.0  # verdict thresholds, in floors

_NUMBERS = ("value", "stderr", "floor", "seconds")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One number measured at one optimizer step.

    Example:
        >>> Record(step=3, name="curvature/sharpness", value=1.5).probe
        'curvature'
    """

    step: int  # optimizer steps taken before this one, so the first step is 0
    name: str  # probe/quantity[/target], letters of [A-Za-z0-9_./-]
    value: float  # NaN when the status says that there is no number
    stderr: float | None = None  # standard error of an estimate, Ritz residual of an eigenvalue
    floor: float | None = None  # what rounding and sampling alone produce, in the value's unit
    unit: str = "1"
    status: Status = "ok"
    verdict: Verdict | None = None
    mode: Mode | None = None  # train: as the step ran it; eval: evaluation mode
    seconds: float | None = None  # of the whole probe that measured it
    matvecs: int | None = None  # Hessian-vector products behind it
    note: str = ""  # why there is no number, or which unit, layer or element it is about
    segment: int = 0  # 0 for the first start of a run, one more after each resume

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise ValueError(f"status must be one of {_STATUSES}, got {self.status!r}")

    @property
    def probe(self) -> str:
        """The first word of the name: the probe that measured it."""
        return self.name.split("/", 1)[0]

    def to_json(self) -> dict[str, Any]:
        """Fields as strict JSON values: NaN and infinities become strings, empty fields go."""
        return {k: _encode(v) for k, v in vars(self).items() if v is not None and v != ""}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Record":
        """The record that `to_json` wrote; fields of later versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: _decode(k, v) for k, v in row.items() if k in known})


def verdict(error: float, floor: float) -> Verdict:
    """Whether a law with this residual holds: up to 3 floors it does, above 10 it does not.

    Example:
        >>> verdict(2e-7, 1e-7), verdict(5e-7, 1e-7), verdict(1e-3, 1e-7)
        ('holds', 'unresolved', 'violated')
    """
    if error <= HOLDS * floor:
        return "holds"
    return "violated" if error > VIOLATED * floor else "unresolved"  # NaN is unresolved too


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _decode(field: str, value: Any) -> Any:
    number = field in _NUMBERS and isinstance(value, str)
    return _NON_FINITE.get(value, value) if number else value
