"""What is chosen of the records of a step: the dozen that matter, all, or those of a pattern."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from eqtoolbox.expect.bounds import Bound
from eqtoolbox.record.record import Record

SHARE = "conservation/share_"
Select = Annotated[
    str | Sequence[str],
    Bound(
        "patterns of record names",
        lambda given: len(given) > 0,
        'give "main", "all", or a list such as ["main", "curvature/*"]',
        whole=True,
    ),
]


@dataclass(frozen=True)
class Scalar:
    """A number of a step: the largest of the records that fit, or what lies beside that one."""

    name: str
    patterns: tuple[str, ...]  # of record names
    of: Literal["value", "floor", "cause"] = "value"


# Of several records the worst is meant: under `worst/`, as none of them alone is.
MAIN = (
    Scalar("training/loss", ("training/loss",)),
    Scalar("training/learning_rate", ("training/learning_rate",)),
    Scalar("vital/gradient_norm", ("vital/gradient_norm",)),
    Scalar("vital/update_ratio", ("vital/update_ratio",)),
    Scalar("curvature/sharpness", ("curvature/sharpness",)),
    Scalar("curvature/stability", ("curvature/stability",)),
    Scalar("worst/equivariance_error", ("equivariance/relative_error/*",)),
    Scalar("worst/equivariance_floor", ("equivariance/relative_error/*",), "floor"),
    Scalar("worst/validation_error", ("validation.equivariance/relative_error/*",)),
    Scalar("worst/drift", ("conservation/drift/*",)),
    Scalar("worst/drift_cause", ("conservation/drift/*",), "cause"),
    Scalar("worst/law_error", ("noether/first_order/*", "noether/second_order/*")),
    Scalar("cost/overhead", ("cost/overhead",)),
)
LAYOUT = {  # of the dozen in charts, by their titles
    "training": ("training/loss", "vital/gradient_norm", "vital/update_ratio", "cost/overhead"),
    "curvature": ("curvature/sharpness", "curvature/stability"),
    "symmetry": (
        "worst/equivariance_error", "worst/equivariance_floor", "worst/validation_error",
        "worst/drift", "worst/law_error",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """A number under the name of its `Scalar`, and the record that it is of."""

    name: str
    value: float
    record: Record


def asked(name: str, only: Sequence[str]) -> bool:
    """Whether a name, or what it begins with, or a pattern with *, is among those asked for.

    Example:
        >>> [asked("noether/epsilon/scale", [o]) for o in ("noether", "*/scale", "noether/eps")]
        [True, True, False]
        >>> asked("noether/epsilon/scale", [])
        True
    """
    return not only or any(
        name == o or name.startswith(f"{o.rstrip('/')}/") or fnmatchcase(name, o) for o in only
    )


def chosen(step: Mapping[str, Record], select: str | Sequence[str]) -> dict[str, float]:
    """The numbers of one step that somebody is to have.

    Args:
        step: records with finite values, by name.
        select: "main", "all", or names, their beginnings and patterns, "main" among them.

    Example:
        >>> rows = [Record(step=3, name=f"conservation/drift/{n}", value=v)
        ...     for n, v in (("scale", 1e-3), ("rescale", 0.2))]
        >>> step = {row.name: row for row in rows}
        >>> chosen(step, "main")
        {'worst/drift': 0.2}
        >>> chosen(step, ["*/scale"])
        {'conservation/drift/scale': 0.001}
    """
    patterns = [select] if isinstance(select, str) else list(select)
    numbers = {c.name: c.value for c in main(step)} if has_main(select) else {}
    wanted = ["*" if pattern == "all" else pattern for pattern in patterns if pattern != "main"]
    if wanted:
        numbers |= {name: row.value for name, row in step.items() if asked(name, wanted)}
    return numbers


def has_main(select: str | Sequence[str]) -> bool:
    """Whether the dozen is among what is selected."""
    return "main" in ([select] if isinstance(select, str) else select)


def main(step: Mapping[str, Record]) -> Iterator[Chosen]:
    """The dozen of a step, as far as it was measured.

    Args:
        step: records with finite values, by name.
    """
    for scalar in MAIN:
        rows = [r for n, r in step.items() if any(fnmatchcase(n, p) for p in scalar.patterns)]
        worst = max(rows, key=lambda row: abs(row.value), default=None)
        if worst is None:
            continue
        if scalar.of == "value":
            yield Chosen(scalar.name, worst.value, worst)
        elif scalar.of == "cause":
            yield from _largest_cause(scalar, worst, step)
        elif worst.floor is not None:
            yield Chosen(scalar.name, worst.floor, worst)


def _largest_cause(scalar: Scalar, worst: Record, step: Mapping[str, Record]) -> Iterator[Chosen]:
    """The share of what moved most the family that moved most, by its cause."""
    family = worst.name.split("/", 2)[2]
    shares = [r for n, r in step.items() if n.startswith(SHARE) and n.endswith(f"/{family}")]
    largest = max(shares, key=lambda row: row.value, default=None)
    if largest is not None:
        cause = largest.name.removeprefix(SHARE).split("/")[0]
        yield Chosen(f"{scalar.name}/{cause}", largest.value, largest)
