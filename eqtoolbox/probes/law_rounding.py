"""Law rounding: what is not a symmetry's in the residuals of its laws at one point."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.linalg.vectors import add, norm
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.float64 import in_float64
from eqtoolbox.probes.float64 import rounding as rounding_of
from eqtoolbox.probes.law import Laws, afar, moved_by
from eqtoolbox.probes.self_test import ROUGH
from eqtoolbox.record.record import HOLDS
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import Snapshot

if TYPE_CHECKING:  # for types alone
    from eqtoolbox.probes.right_sides import RightSides


@dataclass(frozen=True, kw_only=True)
class LawRounding:
    """Rounding of first- and second-order laws, by measuring them again and by float64.

    Args:
        engine: how Hessian products are made.
        snapshot: of the step.
        here: the laws at its parameters.
        rng: draws where they are measured again.
    """

    engine: Engine
    snapshot: Snapshot
    here: Laws
    rng: torch.Generator

    @property
    def objective(self) -> Objective:
        """The loss whose laws these are."""
        return self.engine.objective(self.snapshot)

    @property
    def eps(self) -> float:
        """That of the parameters."""
        return max(torch.finfo(p.dtype).eps for p in self.here.params.values())

    @property
    def amount(self) -> float:
        """Relative, of the loss."""
        return max(self.eps, self.engine.test(self.snapshot).coarsest)

    def of_first(self, sides: "RightSides") -> float:
        """What rounding leaves of first-order laws, over |g||K|."""
        here = self.here
        near = self._gradient(moved_by(self.snapshot.before, self.amount, self.rng))
        noise = max(norm(add(near, here.gradient, -1.0)) / here.size, self.eps)
        del near
        if any(left > HOLDS * noise for left in _left(here, sides)):
            apart = rounding_of(self.objective, here.params, here.gradient)
            noise = max(noise, norm(apart) / here.size if apart else 0.0)
        return noise

    def of_second(self, sides: "RightSides") -> None:
        """Have `sides` measure what it leaves of second-order ones; float64 judges what fails."""
        far = moved_by(self.snapshot.before, afar(self.amount), self.rng)
        there = replace(self.snapshot, before=far)
        sides.compare(Laws(far, self.engine.operator(there)), self.here)
        params, failing = self.here.params, sides.failing()
        if failing and in_float64(self.objective, params, self.here.gradient):
            objective = self.objective.to(torch.float64)
            wide = {n: p.double() for n, p in params.items()}
            sides.judge(failing, objective, Laws(wide, hessian(objective, wide)))

    def _gradient(self, params: Parameters) -> Parameters:
        """The gradient at other parameters, without the graph of a product where it is the same."""
        test = self.engine.test(self.snapshot)
        same = test.mode in ("exact", "rebuilt") and test.coarsest <= ROUGH
        if same and all(p.dtype.itemsize > 2 for p in params.values()):
            found = replayed_gradient(self.objective, params)
            return {n: found[n] if n in found else torch.zeros_like(p) for n, p in params.items()}
        return self.engine.operator(replace(self.snapshot, before=params)).gradient


def _left(here: Laws, sides: "RightSides") -> Iterator[float]:
    """What every first-order law lacks, over |g| |K|."""
    for law in sides.laws.values():
        yield abs(law.slope - law.p) / max(here.size * law.length, 1e-300)
