"""What an alignment did, as a table that also says where nothing was gained."""

from collections.abc import Iterator
from dataclasses import dataclass

from eqtoolbox.act.contenders import Way
from eqtoolbox.act.path import Barrier
from eqtoolbox.expect import notebook


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One symmetry that took part."""

    family: str
    name: str
    size: int  # things that may change places or sign, or independent generators
    moved: int | None  # of them, what stands elsewhere or reflected; None: a continuous group
    slots: int  # axes of parameters that go along


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """What an alignment did; the model computes what it computed, `change` says how exactly."""

    before: float  # |A - B| / |A| over the parameters
    after: float
    balanced_before: float  # likewise in balanced weights, which rescaling does not change
    balanced_after: float
    change: float  # |f - f0| / |f0| of the outputs, or of the loss, in evaluation mode
    floor: float  # what rounding alone makes of it
    way: Way  # how the motion was found
    matched: tuple[Matched, ...]
    naive: Barrier | None  # on `data`, before
    aligned: Barrier | None  # and after
    remarks: tuple[str, ...] = ()  # of the search

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the result."""
        return (*self.remarks, *self._failures())

    def _failures(self) -> Iterator[str]:
        if not self.matched:
            yield "no symmetry was found to move along: the model stays as it was"
        elif self.way == "as it stood" and self.before > 0:
            yield "no motion lowers the rise half-way on the batch: the model stays as it was"
        elif self.before > 0 and not self.after < self.before:
            yield (
                "the distance is no smaller: the reference stands in other scales; see the one in "
                "balanced weights"
            )
        if self.naive and self.aligned and not self.aligned.barrier < self.naive.barrier:
            yield "the barrier is no lower than without alignment: these two are not aligned by it"

    def __str__(self) -> str:
        width = max((len(m.name) for m in self.matched), default=4)
        lines = [f"{'family':15} {'name':{width}} {'size':>6} {'slots':>5}  moved"]
        for m in self.matched:
            moved = "balanced, turned" if m.moved is None else f"{m.moved / m.size:.0%}"
            lines.append(f"{m.family:15} {m.name:{width}} {m.size:6} {m.slots:5}  {moved}")
        lines.append(f"found by         {self.way}")
        lines.append(f"distance         {self.before:.4g} -> {self.after:.4g}, relative")
        lines.append(f"balanced weights {self.balanced_before:.4g} -> {self.balanced_after:.4g}")
        lines.append(f"outputs changed  {self.change:.1e}, floor {self.floor:.1e}")
        if self.naive and self.aligned:
            lines.append(f"barrier          {self.naive.barrier:.4g} -> {self.aligned.barrier:.4g}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    _repr_html_ = notebook.text
