"""The top eigenvalues of an operator that changes a little at a time, for two or three products.

Plain Lanczos from the last top vector is the best use of a few products; its error is r²/gap with
the gap to the next eigenvalue, which a short run cannot see and the tracker therefore remembers.
What no short run can exclude is that another eigenvalue has overtaken; that is told, not hidden.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Seed
from eqtoolbox.linalg.krylov import Krylov, Ritz
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, add, combine, dot, norm, random_like


@dataclass(frozen=True, kw_only=True)
class TrackedValue:
    """The largest eigenvalue at one update; a Ritz value, so never above the true one."""

    value: float
    bound: float  # estimated error min(r, r²/gap), in the unit of the value
    residual: float  # ‖Hv − λv‖
    status: Literal["ok", "uncertain"]  # uncertain: bound too large, or overtaking not excluded
    matvecs: int
    deep: bool  # whether this update looked for other eigenvalues
    values: Tensor  # (k,) float64, descending


@checked
class Tracker:
    """Follows the k largest eigenvalues from update to update, warm-started.

    An update takes `min_matvecs` to `max_matvecs` products, until r²/gap <= rtol·|λ|max. Every
    `deep_every` updates, soon after a doubtful one, and at once where `max_matvecs` is not enough,
    an update is deep: it takes `deep_matvecs`, from a start mixed with a random vector, and renews
    the memory of the eigenvalue next in line. The status is "uncertain" when the bound is too
    large, when the vector has turned by more than 45°, or when the next in line may have overtaken
    since the last deep update, judged by how far it moved between deep updates before and by how
    far the top moved since the last update.

    Args:
        k: eigenvalues to follow; for k > 1 at least k + 1 products are taken.
        rtol: relative error to reach.
        min_matvecs: products per update, at least.
        max_matvecs: products per update, at most.
        deep_every: every how many updates one is deep; after a doubtful one the fourth.
        deep_matvecs: products of a deep update.
        seed: of the random vectors.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> tracker = Tracker()
        >>> for top in (2.0, 2.1):
        ...     found = tracker.update(MatrixOperator(torch.diag(torch.tensor([top, 1.0, 0.5]))))
        ...     round(found.value, 4), found.status
        (2.0, 'ok')
        (2.1, 'ok')
    """

    def __init__(
        self,
        k: int = 1,
        *,
        rtol: float = 0.01,
        min_matvecs: int = 2,
        max_matvecs: int = 8,
        deep_every: int = 20,
        deep_matvecs: int = 12,
        seed: Seed = 0,
    ) -> None:
        if k < 1 or not 0 < rtol < 1 or deep_every < 1:
            raise ValueError(
                "tracker needs k >= 1, 0 < rtol < 1 and deep_every >= 1, "
                f"got k={k}, rtol={rtol}, deep_every={deep_every}"
            )
        least = max(min_matvecs, k + 1 if k > 1 else 1)
        if min_matvecs < 1 or not least <= max_matvecs <= deep_matvecs:
            raise ValueError(
                "tracker needs 1 <= min_matvecs and max(min_matvecs, k + 1) <= max_matvecs <= "
                f"deep_matvecs, got {min_matvecs}, {max_matvecs}, {deep_matvecs} for k={k}"
            )
        self.k, self.rtol = k, rtol
        self.min_matvecs, self.max_matvecs = least, max_matvecs
        self.deep_every, self.deep_matvecs = deep_every, deep_matvecs
        self.vectors: list[dict[str, Tensor]] = []  # the last top k, orthonormal
        self._spectrum: list[float] = []  # largest of the last deep update, at most k + 1
        self._drift: float | None = None  # change per update of the next in line, over the top
        self._top = 0.0  # the last value
        self._age = 0  # updates since the last deep one
        self._doubt = False
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, operator: LinearOperator) -> TrackedValue:
        """The top of `operator`, which should be close to the last one.

        Parameters are matched by name and shape: new ones start at zero, missing ones are dropped.

        Raises:
            ValueError: the operator is not symmetric or has fewer than k dimensions.
            FloatingPointError: a product is not finite.
        """
        if operator.size < self.k:
            raise ValueError(f"k must be at most n={operator.size}, got {self.k}")
        old = self._aligned(operator)
        early = self._doubt or self._drift is None
        every = min(4, self.deep_every) if early else self.deep_every
        deep = not old or self._age + 1 >= every
        budget = self.deep_matvecs if deep else self.max_matvecs
        start = self._start(old, deep)
        krylov = Krylov(operator, self.deep_matvecs, self._generator, start)
        while True:
            goes_on = krylov.step()
            ritz = krylov.ritz()
            certain = self._certain(ritz)
            if krylov.size == operator.size or krylov.matvecs >= self.deep_matvecs:
                break
            if not deep and krylov.size >= self.min_matvecs and (certain or not goes_on):
                break
            if krylov.matvecs >= budget:  # no certificate: look further
                deep, budget = True, self.deep_matvecs
        return self._remember(krylov, ritz, old, deep or krylov.size == operator.size)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue as if it had not stopped."""
        return {
            "k": self.k,
            "vectors": [{n: x.clone() for n, x in v.items()} for v in self.vectors],
            "spectrum": list(self._spectrum),
            "drift": self._drift,
            "top": self._top,
            "age": self._age,
            "doubt": self._doubt,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: the state is of a tracker with another k.
        """
        if state["k"] != self.k:
            raise ValueError(f"state must be of a tracker with k={self.k}, got k={state['k']}")
        self.vectors = [{n: x.clone() for n, x in v.items()} for v in state["vectors"]]
        self._spectrum, self._drift = list(state["spectrum"]), state["drift"]
        self._top, self._age, self._doubt = state["top"], state["age"], state["doubt"]
        self._generator.set_state(state["generator"].cpu())

    def _aligned(self, operator: LinearOperator) -> list[dict[str, Tensor]]:
        """The remembered vectors in the operator's space, without those that vanish there."""

        def fit(known: Vector, name: str, x: Tensor) -> Tensor:
            same = name in known and known[name].shape == x.shape
            return known[name].to(x) if same else x.new_zeros(x.shape)

        like = operator.space.like
        vectors = [{n: fit(v, n, x) for n, x in like.items()} for v in self.vectors]
        return [v for v in vectors if norm(v) > 0]

    def _start(self, old: list[dict[str, Tensor]], deep: bool) -> Vector | None:
        if not old:
            return None
        start = combine(old, [1.0] * len(old))
        if not deep:
            return start
        # a symmetry may keep the old vectors exactly orthogonal to what overtakes them
        noise = random_like(start, self._generator)
        return add(start, noise, 0.3 * norm(start) / norm(noise))

    def _next_in_line(self, top: float) -> float:
        """The remembered eigenvalue k + 1, scaled as the top has changed since."""
        if len(self._spectrum) <= self.k:
            return -math.inf
        return self._spectrum[self.k] * self._growth(top)

    def _growth(self, top: float) -> float:
        """How much the top has grown since the last deep update, where that makes sense."""
        first = self._spectrum[0]
        return top / first if top > 0 and first > 0 else 1.0

    def _bounds(self, ritz: Ritz) -> Tensor:
        """min(r, r²/gap) of the top k, the gap being that to the next in line."""
        values, residuals = ritz.values.flip(0), ritz.residuals.flip(0)[: self.k]
        seen = values[self.k : self.k + 1].tolist()
        following = max([self._next_in_line(float(values[0])), *seen])
        gap = (values[: self.k] - following).clamp(min=0)
        return torch.minimum(residuals, (residuals**2 / gap).nan_to_num(nan=0.0))

    def _certain(self, ritz: Ritz) -> bool:
        small = self._bounds(ritz) <= self.rtol * ritz.values.abs().max()
        return len(small) == self.k and bool(small.all())

    def _remember(
        self, krylov: Krylov, ritz: Ritz, old: list[dict[str, Tensor]], deep: bool
    ) -> TrackedValue:
        values = ritz.values.flip(0)[: self.k + 1].tolist()
        top, size = values[0], float(ritz.values.abs().max())
        bounds, certain = self._bounds(ritz), self._certain(ritz)
        chosen = torch.arange(len(ritz.values)).flip(0)[: self.k]
        self.vectors = krylov.basis.combine(ritz.weights[:, chosen])
        kept = sum(dot(a, b) ** 2 for a in self.vectors for b in old) / self.k
        overtaken = False
        if deep:
            self._renew(values, size)
        else:
            self._age += 1
            expected = self._next_in_line(top)
            moved = abs(top - self._top)  # what the next in line may have moved by as well
            slack = max(2 * (self._drift or 0.0) * self._age * size, moved)
            overtaken = values[self.k - 1] - expected < slack or kept < 0.5
            if -math.inf < expected < max(values[self.k :], default=-math.inf):
                self._spectrum[self.k] = values[self.k] / self._growth(top)
        self._doubt, self._top = overtaken or not certain, top
        return TrackedValue(
            value=top,
            bound=float(bounds[0]),
            residual=float(ritz.residuals[-1]),
            status="uncertain" if self._doubt else "ok",
            matvecs=krylov.matvecs,
            deep=deep,
            values=ritz.values.flip(0)[: self.k],
        )

    def _renew(self, values: list[float], size: float) -> None:
        """Learn the spectrum of a deep update, and how far the next in line has moved."""
        expected = self._next_in_line(values[0])
        if math.isfinite(expected) and len(values) > self.k and size > 0:
            moved = abs(values[self.k] - expected) / size / (self._age + 1)
            self._drift = moved if self._drift is None else (self._drift + moved) / 2
        self._spectrum, self._age = values, 0
