"""Ascent: one symmetry after another, until none brings balanced weights nearer to others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from eqtoolbox.act.assignment import (
    Matching,
    Weights,
    assigned,
    exchange,
    flipped,
    invariants,
    turned,
)
from eqtoolbox.act.gauge import applied
from eqtoolbox.act.motion import Motion
from eqtoolbox.weights.parameter import Parameters

SWEEPS = 200
GAIN = 1e-6  # of the squared distance: a smaller step is none
ROUNDING = 1e-28  # of squared norms


@dataclass
class Ascent:
    """B on its way to A, and the motions so far."""

    goal: Parameters  # A, balanced
    here: dict[str, Tensor]  # B, balanced, with the buffers that move along
    motions: list[Motion] = field(default_factory=list)

    def distance(self, names: Iterable[str] | None = None) -> float:
        """|A - B|^2 over these parameters."""
        each = self.goal if names is None else names
        return sum(float((self.goal[n] - self.here[n]).square().sum()) for n in each)

    def take(self, motions: Sequence[Motion], always: bool = False) -> bool:
        """Go there if it is nearer.

        Where units own rows and columns of one parameter the distance is quadratic in their order,
        and the assignment only knows its slope.
        """
        if not motions:
            return False
        there = Ascent(self.goal, applied(motions, self.here))
        changed = [n for n in self.goal if there.here[n] is not self.here[n]]
        before, after = self.distance(changed), there.distance(changed)
        least = ROUNDING * sum(float(self.goal[n].square().sum()) for n in changed)
        if not always and before - after <= GAIN * before + least:
            return False
        self.here = there.here
        self.motions += motions
        return True

    def climb(self, matching: Matching) -> "Ascent":
        """Until no symmetry gains."""
        for _ in range(SWEEPS):
            gained = [
                self.take(matching.permuted(p, self._both, self.here)) for p in matching.permuting
            ]
            gained += [self.take(flipped(f, self._both)) for f in matching.flips]
            gained += [self.take(turned(m, self._both)) for m in matching.mixers]
            if not any(gained):
                break
        return self

    @property
    def _both(self) -> Weights:
        return Weights(self.goal, self.here)

    def start(self, matching: Matching) -> "Ascent":
        """To the orders by what no permutation, sign or rotation of other axes changes."""
        mixed = {name for m in matching.mixers for name in m.names}
        for symmetry in matching.permuting:
            a, b = (invariants(symmetry, x, mixed) for x in (self.goal, self.here))
            order = assigned(2 * a @ b.mT - b.square().sum(1))  # least sum of |a_i - b_j|^2
            self.take([exchange(symmetry, order, self.here)], always=True)
        # signs before a matrix takes up that of what is beside it
        while any([self.take(flipped(f, self._both)) for f in matching.flips]):  # noqa: C419
            pass
        return self
