"""What a search found, with what it could not see; as plain values, and read back from them."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from eqtoolbox.expect import notebook
from eqtoolbox.expect.bounds import between
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Count, NotNegative
from eqtoolbox.weights.parameter import ParameterSymmetry
from eqtoolbox.weights.tracing.trace import Trace, Value, each_of

VERSION = 2  # of the search: what an earlier one found is looked for anew
_SIZE = 100_000  # rows of a saved result, letters of a name


class Found(list[ParameterSymmetry]):
    """Symmetries as a list, with `notes`: sentences on what was and was not analysed."""

    def __init__(
        self,
        symmetries: Iterable[ParameterSymmetry] = (),
        notes: Iterable[str] = (),
        structure: str = "",
        largest: float = 0.0,
        varied: bool = False,
    ) -> None:
        super().__init__(symmetries)
        self.notes = tuple(notes)
        self.structure = structure  # digest of what the loss runs
        self.largest = largest  # constant that counted as an epsilon before a root
        self.varied = varied  # whether each normalisation was seen to divide by something

    def state_dict(self) -> dict[str, Any]:
        """What was found and with which status, in plain values: see `KnownSymmetries`."""
        rows = [
            [s.family, s.name, s.dimension, s.status, _number(s.residual), _number(s.epsilon)]
            for s in self
        ]
        head = {"version": VERSION, "structure": self.structure, "largest": self.largest}
        return {**head, "found": rows}

    def __str__(self) -> str:
        """The table of `eqtoolbox symmetries`: one line a symmetry, then the notes."""
        width = max((len(s.name) for s in self), default=4)
        lines = [f"{'family':15} {'name':{width}} {'dimension':>9} {'status':11} residual"]
        lines += [
            f"{s.family:15} {s.name:{width}} {s.dimension:>9} {s.status:11} {s.residual:.1e}"
            + _by_epsilon(s)
            for s in self
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    _repr_html_ = notebook.text


@dataclass(frozen=True, kw_only=True)
class KnownRow:
    """One symmetry of an earlier result; what it moves is proposed by the trace again."""

    family: str
    name: str
    dimension: int
    status: Literal["verified", "approximate", "broken", "inert"]
    residual: float
    epsilon: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is called by."""
        return self.family, self.name, self.dimension


@dataclass(frozen=True, kw_only=True)
class KnownSymmetries:
    """What an earlier search found, read from its `Found.state_dict`, which anyone may have made.

    It says what to try first and nothing else: that it holds is for a check to say.

    Example:
        >>> saved = {"version": 2, "structure": "ab", "largest": 0.1, "found": []}
        >>> KnownSymmetries.of(saved).rows
        ()
        >>> KnownSymmetries.of({**saved, "found": [["a", 3]]})
        Traceback (most recent call last):
        ValueError: expected 6 values of each symmetry, got 2
    """

    structure: str
    largest: float
    rows: tuple[KnownRow, ...]

    @classmethod
    def of(cls, state: Any) -> "KnownSymmetries":
        """Read plain values.

        Raises:
            TypeError, ValueError: they are no result, or one of another version.
        """
        fitted("state", state, Mapping[str, Any])
        if state.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION} of a search, got another one")
        rows = fitted("found", state.get("found"), Sequence[Any])
        if len(rows) > _SIZE:
            raise ValueError(f"expected up to {_SIZE} symmetries, got {len(rows)}")
        return cls(
            structure=_text("structure", state.get("structure")),
            largest=fitted("largest", state.get("largest"), Annotated[float, between(0, 1)]),
            rows=tuple(map(_row, rows)),
        )


def structure_of(trace: Trace) -> str:
    """Digest of what a trace runs on which shapes, with every number that is no tensor's.

    Example:
        >>> import torch
        >>> from eqtoolbox.weights.tracing.trace import trace
        >>> made = [trace(lambda p: (None, f(p["w"])), {"w": torch.ones(3)})
        ...         for f in (torch.sum, torch.sum, torch.mean)]
        >>> digests = [structure_of(t) for t in made]
        >>> digests[0] == digests[1], digests[0] == digests[2]
        (True, False)
    """
    told = hashlib.sha256()
    for name, value in trace.parameters.items():
        told.update(repr((name, value.number, tuple(value.shape))).encode())
    for node in trace.nodes:
        every = each_of((node.args, node.kwargs, node.outputs))
        told.update(repr((node.name, [_told(x) for x in every])).encode())
    return told.hexdigest()[:32]


def _told(leaf: Any) -> Any:
    if isinstance(leaf, Value):
        return leaf.number, tuple(leaf.shape)
    return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else type(leaf).__name__


def _row(given: Any) -> KnownRow:
    values = fitted("symmetry", given, Sequence[Any])
    if len(values) != 6:
        raise ValueError(f"expected 6 values of each symmetry, got {len(values)}")
    family, name, dimension, status, residual, epsilon = values
    return KnownRow(
        family=_text("family", family),
        name=_text("name", name),
        dimension=fitted("dimension", dimension, Count),
        status=fitted("status", status, Literal["verified", "approximate", "broken", "inert"]),
        residual=_size("residual", residual),
        epsilon=_size("epsilon", epsilon),
    )


def _text(name: str, given: Any) -> str:
    text: str = fitted(name, given, str)
    if len(text) > _SIZE:
        raise ValueError(f"expected {name} of up to {_SIZE} letters, got {len(text)}")
    return text


def _size(name: str, given: Any) -> float:
    """A residual, NaN for none."""
    if given is None:
        return math.nan
    return float(fitted(name, given, NotNegative))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _by_epsilon(symmetry: ParameterSymmetry) -> str:
    """What the epsilon of normalisations says of the residual, where it was asked."""
    if math.isnan(symmetry.epsilon):
        return ""
    left = "" if symmetry.status == "approximate" else ", not what was found"
    return f"  epsilon predicts {symmetry.epsilon:.1e}{left}"
