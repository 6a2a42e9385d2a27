"""Leftover: what the nature of approximate symmetries leaves of first-order laws, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from eqtoolbox.linalg.vectors import norms
from eqtoolbox.probes.law import FirstOrder
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.world.shards import Shards

TINY = 1e-300


@dataclass(kw_only=True, eq=False)
class Leftover(State):
    """What is left of the laws of approximate families, as it was last known."""

    # |<K, g>| / (|K| |g|) of every generator, and |K| |g|
    left: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    left_at: dict[str, Tensor] = field(default_factory=dict)  # scales of the charges then
    sizes: Tensor | None = None  # norms of all weights and gains then

    def told(
        self,
        snapshot: Snapshot,
        charges: Charges,
        size: float,
        lengths: Mapping[str, float],
        scales: Tensor,
    ) -> tuple[float, dict[str, Tensor]]:
        """The floor of laws that `noether` found at this very step, and each p it tells.

        Between such steps the last p stands for what approximate laws may lack.

        Args:
            snapshot, charges: of the step.
            size: |g|.
            lengths: |K| of each family.
            scales: what |Q| of each charge could be.
        """
        first: FirstOrder | None = snapshot.told.get(FirstOrder.__name__)
        if first is None or first.pull is None:
            return (0.0 if first is None else first.noise), {}
        predicted, found = charges.slopes(snapshot.before, first.pull), {}
        for family in self.left:
            where = charges.generators[family]
            found[family] = predicted[where]
            whole = max(size * lengths[family], TINY)
            self.left[family] = predicted[where].abs().cpu() / whole, whole
            charged = charges.families.get(family, slice(0, 0))  # some laws conserve nothing
            self.left_at[family] = scales[charged].clone()
        self.sizes = sizes(snapshot.before, snapshot.shards).cpu()
        return first.noise, found

    def shrunk(self, now: Tensor) -> float:
        """By how much the variances that epsilons are added to may have shrunk through any one.

        Args:
            now: the norms of all weights and gains, on the host.
        """
        if not self.left or self.sizes is None or not len(now):
            return 1.0
        return max(1.0, float((self.sizes / now.clamp_min(TINY)).square().max()))

    def of(self, family: str, whole: float, now: Tensor, start: Tensor, shrunk: float) -> float:
        """What the nature of an approximate law may leave of it now, relative; else 0.

        Three times the slopes when they were last known, over the smaller gradient. That of an
        epsilon grows as eps / variance, which is with 1 / |w|^2: as a quadratic charge's scale
        shrinks, and as gains do that the variance comes from.

        Args:
            family: of the law.
            whole: |K| |g|.
            now: scales of the family's charges; empty where it has none.
            start: the same at the start, for where nothing was told since.
            shrunk: of variances through other tensors than the family's own.
        """
        if family not in self.left:
            return 0.0
        began, whole_then = self.left[family]
        now, then = now.cpu(), self.left_at.get(family, start).cpu()
        charged = len(now) > 0
        if len(now) != len(began):  # charges of other units than the generators
            now, then = now.norm().reshape(-1), then.norm().reshape(-1)
        grown = (then / now.clamp_min(TINY)).clamp_min(1.0) if charged else began.new_ones(1)
        smaller: float = max(whole_then / whole, 1.0)
        return 3 * float((began * grown).norm()) * smaller * shrunk


def sizes(params: Parameters, shards: Shards) -> Tensor:
    """Norm of every weight and gain, where they are: (tensors,) in float64."""
    return shards.total(squares(weights(params), shards)).sqrt()


def weights(params: Parameters) -> Parameters:
    """All but biases."""
    return {n: p for n, p in params.items() if not n.endswith("bias")}


def squares(params: Parameters, shards: Shards) -> Tensor:
    """Squared norms of what is held here, to be added up over shards: (tensors,)."""
    return shards.squares(norms(params.values()), [*params])
