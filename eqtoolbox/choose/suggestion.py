"""Suggestions: rows of claims and ways, best first, with what each buys on held-out samples."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eqtoolbox.choose.folds import Gain
from eqtoolbox.choose.mending import Mend
from eqtoolbox.expect import notebook
from eqtoolbox.symmetry.asymmetry import DataAsymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.result import EquivarianceResult

Outcome = Literal["gains", "none", "loses", "kept", "refused", "not tried"]
_ORDER = ("gains", "none", "loses", "kept", "not tried", "refused")


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A symmetry, a way to have it, and whether that pays."""

    claim: Equivariance
    way: str  # augmented, averaged, ...; "" where none was tried
    outcome: Outcome  # gains: beyond noise; kept: the model has it; refused: the data have it not
    gain: Gain | None = None  # of the score over the model as it is, held out
    decides: Gain | None = None  # see `Suggestions.decided`
    score: float | None = None  # mean over folds
    weights: int | None = None  # free ones
    data: DataAsymmetry | None = None  # of inputs and targets together
    model: EquivarianceResult | None = None  # of the model as given
    evidence: float | None = None  # nats a sample; to be read beside the gain only
    call: str = ""  # what builds it of `model`, `claim` and `sample`
    note: str = ""


def ranked(rows: Sequence[Suggestion], asked: Collection[str]) -> list[Suggestion]:
    """Rows, best first: by outcome, then claims by the first way that was tried, then ways.

    The first way is an average as a rule, which changes nothing but the symmetry, while tied
    networks of different groups have different widths, too.

    Args:
        rows: in the order in which they were tried.
        asked: names of claims that were asked for; they are taken at the end of their interval.
    """
    first: dict[int, float] = {}
    for row in rows:
        if row.decides is not None and id(row.claim) not in first:
            edge = row.decides.quantile * row.decides.stderr * (row.claim.name in asked)
            first[id(row.claim)] = row.decides.value + edge

    def place(row: Suggestion) -> tuple[int, float, float]:
        own = row.decides.value if row.decides else 0.0
        return _ORDER.index(row.outcome), -first.get(id(row.claim), 0.0), -own

    return sorted(rows, key=place)


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """What `suggest` found; iterates over its rows."""

    rows: tuple[Suggestion, ...]  # best first
    unit: str  # of scores and gains: accuracy; relative error, whose fall is a gain; held-out loss
    plain: float | None  # held-out score of the model as it is; None: nothing was to be tried
    plain_weights: int
    plain_evidence: float | None
    samples: int
    mends: tuple[Mend, ...] = ()  # what breaks a claim that the data allow, layer by layer
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Suggestion | None:
        """The first row that gains beyond noise; None: nothing is suggested."""
        return next((row for row in self.rows if row.outcome == "gains"), None)

    def __iter__(self) -> Iterator[Suggestion]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    _repr_html_ = notebook.text

    @property
    def decided(self) -> str:
        """What outcomes and ranks rest on."""
        kinds = {"accuracy": "gain in p(label)", "relative error": "fall of log error"}
        return kinds.get(self.unit, "fall of loss")

    def verdict(self) -> str:
        """What to do, in a sentence."""
        best = self.best
        if best is None:
            return "No symmetry is suggested: none that the data allow gains more than noise."
        assert best.gain is not None
        return (
            f"{best.claim.name}, {best.way}: {self.unit} {said(self.unit, best.score)} against "
            f"{said(self.unit, self.plain)} of the model as it is, a gain of {best.gain.value:.2g} "
            f"± {best.gain.stderr:.1g} on held-out samples."
        )

    def __str__(self) -> str:
        head = (
            "claim", "way", "outcome", "gain", self.decided, self.unit, "weights", "data p",
            "evidence",
        )  # fmt: skip
        plain = (
            "(as it is)", "plain", "", "", "", said(self.unit, self.plain),
            f"{self.plain_weights:,}", "", number(self.plain_evidence),
        )  # fmt: skip
        cells = [head, *(self.cells(row) for row in self.rows), plain]
        wide = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in cells
        ]
        notes = [*map(str, self.mends)]
        best = self.best
        called = [f"build it: {best.call}"] if best else []
        return "\n".join([*lines, "", self.verdict(), *called, *notes, *self.notes])

    __repr__ = __str__

    def cells(self, row: Suggestion) -> tuple[str, ...]:
        """A row as it is shown."""
        return (
            row.claim.name,
            row.way,
            {"none": "within noise"}.get(row.outcome, row.outcome),
            f"{row.gain.value:+.3f} ± {row.gain.stderr:.3f}" if row.gain else "",
            f"{row.decides.value:+.3f} ± {row.decides.stderr:.3f}" if row.decides else "",
            said(self.unit, row.score),
            f"{row.weights:,}" if row.weights else "",
            f"{row.data.p_value:.3f}{'?' * (row.data.verdict == 'unresolved')}" if row.data else "",
            number(row.evidence),
        )


def said(unit: str, score: float | None) -> str:
    """A score as it is read: errors and losses without the sign that makes more of it better."""
    return "" if score is None else f"{abs(score) if unit == 'relative error' else score:.3f}"


def number(value: float | None) -> str:
    """A number with two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"
