"""The top eigenvalues of an operator that changes a little at a time, for two or three products.

Plain Lanczos from the last top vector is the best use of a few products; its error is r²/gap with
the gap to the next eigenvalue, which a short run cannot see. The tracker therefore remembers a
ceiling of all other eigenvalues and raises it as fast as it has seen things move: where the ceiling
comes near the top, another eigenvalue may have overtaken, and the next look is for all of them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Seed
from eqtoolbox.linalg.accept import product_errors
from eqtoolbox.linalg.krylov import Krylov, Ritz
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.tracked import Look, TrackedValue
from eqtoolbox.linalg.vectors import Vector, add, combine, dot, fitted_to, norm, random_like

_ROUNDINGS = 100  # of products, seen in values: float32 networks err by 6e-6
_WILD = 0.1  # pace at which any eigenvalue may be the next top
_MOVES, _DRIFTS = 5, 3  # how many changes are remembered


@checked
class Tracker:
    """Follows the k largest eigenvalues from update to update, warm-started.

    An update takes `min_matvecs` to `max_matvecs` products, until the bound is below
    rtol·|λ|max. Every `deep_every` updates, as soon as it takes more to be sure, and always at a
    pace above 0.1, an update is deep: it takes `deep_matvecs`, from a start mixed with as much of a
    random vector, and renews the ceiling c of the eigenvalues that are not followed, θ + r of the
    next Ritz pair. Until the next deep update the ceiling grows with the top and by the pace. Pace
    is the largest of what the top moved by in the last five updates (half of a change, and all that
    the change before did not foresee) and of twice what the next in line moved by between deep
    ones, over the top and an update.

    If all others are below c, the error of a Ritz value θ is at most min(r, r²/(θ − c)), by Kato
    and Temple, or c − θ where that is more; what rounding does to products is added,
    and what differences are off by. That the
    others are below c is not proved by a few products: in `benchmarks/tracking_bound.py` (MLP,
    ResNet and GPT under SGD, momentum and Adam, sharpness moving by 0.1 to 30 % a step) the bound
    holds for 99.5 % of the "ok" values and more.

    Args:
        k: eigenvalues to follow; for k > 1 at least k + 1 products are taken.
        rtol: relative error to reach.
        min_matvecs: products per update, at least.
        max_matvecs: products per update, at most.
        deep_every: every how many updates one is deep, at least; the fourth of all is.
        deep_matvecs: products of a deep update.
        rows: basis vectors in memory at most, each as large as the model; at least k + 2. An update
            that takes more products goes on from the best of them.
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
        rows: int | None = None,
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
        if rows is not None and rows < k + 2:
            raise ValueError(f"rows must be >= k + 2 = {k + 2}, got {rows}; None sets no limit")
        self.k, self.rtol = k, rtol
        self.rows = deep_matvecs if rows is None else min(rows, deep_matvecs)
        self.min_matvecs, self.max_matvecs = least, max_matvecs
        self.deep_every, self.deep_matvecs = deep_every, deep_matvecs
        self.vectors: list[dict[str, Tensor]] = []  # the last top k, orthonormal
        self._spectrum: list[float] = []  # largest of the last deep update, at most k + 1
        self._ceiling = math.inf  # of all others then
        self._drifts: list[float] = []  # changes of the next in line per update, over the top
        self._moves: list[float] = []  # of the top per update, see `_move`
        self._tops: list[float] = []  # the last two values
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
        aligned = (fitted_to(operator.space.like, v) for v in self.vectors)
        old = [v for v in aligned if norm(v) > 0]
        deep = not old or self._due()
        look = self._look(operator, self._start(old, deep), deep)
        spent = look.matvecs
        if not (look.certain or look.deep):  # at once for all, from the best that is known
            look = self._look(operator, self._start(look.top, True), True)
            spent += look.matvecs
        self.vectors = look.top
        kept = sum(dot(a, b) ** 2 for a in look.top for b in old) / self.k
        self._doubt = not look.certain or (not look.deep and kept < 0.5)
        self._remember(look)
        return TrackedValue(
            value=float(look.values[0]),
            bound=float(look.bounds[0]),
            residual=float(look.residuals[0]),
            status="uncertain" if self._doubt else "ok",
            matvecs=spent,
            deep=look.deep,
            values=look.values[: self.k],
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue as if it had not stopped."""
        return {
            "k": self.k,
            "vectors": list(self.vectors),  # which nobody writes to
            "spectrum": list(self._spectrum),
            "ceiling": self._ceiling,
            "drifts": list(self._drifts),
            "moves": list(self._moves),
            "tops": list(self._tops),
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
        self.vectors = list(state["vectors"])
        self._spectrum, self._ceiling = list(state["spectrum"]), state["ceiling"]
        self._drifts, self._moves = list(state["drifts"]), list(state["moves"])
        self._tops, self._age, self._doubt = list(state["tops"]), state["age"], state["doubt"]
        self._generator.set_state(state["generator"].cpu())

    def _look(self, operator: LinearOperator, start: Vector | None, deep: bool) -> Look:
        """Products until the bound is small, or for a deep look as many as it may take."""
        krylov = Krylov(operator, self.rows, self._generator, start)
        most = self.deep_matvecs if deep else self.max_matvecs
        most = max(self.min_matvecs, most - self.k * operator.error_products)
        while True:
            goes_on = krylov.step()
            ritz, whole = krylov.ritz(), krylov.size == operator.size
            ceiling = -math.inf if whole else self._others(ritz, deep)
            rounding = krylov.asymmetry + _ROUNDINGS * operator.space.eps * krylov.scale
            bounds = self._bounds(ritz, ceiling) + rounding
            certain = self._small(bounds, ritz)
            enough = krylov.matvecs >= self.min_matvecs and (certain or not goes_on)
            spent = krylov.matvecs >= most
            if whole or spent or (enough and not deep):
                break
            if krylov.full:
                best = torch.arange(len(ritz.values)).flip(0)
                krylov.restart(ritz, best[: self.k + (krylov.size - self.k) // 2])
        chosen = torch.arange(len(ritz.values)).flip(0)[: self.k]
        top = krylov.basis.combine(ritz.weights[:, chosen])
        bounds = bounds + product_errors(operator, top)
        certain = self._small(bounds, ritz)
        return Look(
            values=ritz.values.flip(0)[: self.k + 1],
            residuals=ritz.residuals.flip(0)[: self.k],
            top=top,
            size=float(ritz.values.abs().max()),
            ceiling=ceiling,
            bounds=bounds,
            certain=certain,
            deep=deep or whole,
            matvecs=krylov.matvecs + len(top) * operator.error_products,
        )

    def _small(self, bounds: Tensor, ritz: Ritz) -> bool:
        small = bounds <= self.rtol * ritz.values.abs().max()
        return len(small) == self.k and bool(small.all())

    def _due(self) -> bool:
        """Whether the next update must look for other eigenvalues."""
        age = self._age + 1
        every = self.deep_every if self._drifts else min(4, self.deep_every)
        near = self._ceiling + self._pace() * age * abs(self._spectrum[0]) > self._spectrum[0]
        return self._doubt or age >= every or near or self._pace() > _WILD

    def _start(self, old: list[dict[str, Tensor]], deep: bool) -> Vector | None:
        if not old:
            return None
        start = combine(old, [1.0] * len(old))
        if not deep:
            return start
        # a symmetry may keep the old vectors exactly orthogonal to what overtakes them
        noise = random_like(start, self._generator)
        return add(start, noise, norm(start) / norm(noise))

    def _pace(self) -> float:
        """How far the next in line may move in one update, over the top."""
        return max([0.0, *self._moves, *(2 * drift for drift in self._drifts)])

    def _move(self, top: float, size: float) -> float:
        """Half of the last change of the top, and all of it that the one before did not foresee."""
        if not self._tops or size == 0:
            return 0.0
        change, before = top - self._tops[-1], self._tops[-1] - self._tops[0]
        return (abs(change) / 2 + abs(change - before)) / size

    def _growth(self, top: float) -> float:
        """How much the top has grown since the last deep update, where that makes sense."""
        first = self._spectrum[0]
        return top / first if top > 0 and first > 0 else 1.0

    def _others(self, ritz: Ritz, deep: bool) -> float:
        """A ceiling of the eigenvalues that are not followed."""
        values, residuals = ritz.values.flip(0), ritz.residuals.flip(0)
        following = slice(self.k, self.k + 1)
        if deep:
            ceilings: list[float] = (values + residuals)[following].tolist()
            return max(ceilings, default=math.inf)
        top, size = float(values[0]), float(values.abs().max())
        pace = max(self._pace(), self._move(top, size))
        grown = self._ceiling * self._growth(top) + pace * (self._age + 1) * size
        seen: list[float] = values[following].tolist()
        return max([grown, *seen])

    def _bounds(self, ritz: Ritz, ceiling: float) -> Tensor:
        """max(min(r, r²/(θ − c)), c − θ) of the top k."""
        values, residuals = ritz.values.flip(0)[: self.k], ritz.residuals.flip(0)[: self.k]
        gap = values - ceiling
        sharp = (residuals**2 / gap.clamp(min=0)).nan_to_num(nan=0.0)
        return torch.maximum(torch.minimum(residuals, sharp), -gap)

    def _remember(self, look: Look) -> None:
        """Learn how far things moved and, of a deep look, where the others are."""
        values, between = look.values.tolist(), self._age + 1
        top = values[0]
        if self._tops:
            self._moves = [*self._moves[1 - _MOVES :], self._move(top, look.size)]
        if look.deep:
            if len(values) == len(self._spectrum) == self.k + 1:
                expected = self._spectrum[self.k] * self._growth(top)
                drift = abs(values[self.k] - expected) / max(look.size, 1e-300) / between
                self._drifts = [*self._drifts[1 - _DRIFTS :], drift]
            self._spectrum, self._ceiling, self._age = values, look.ceiling, 0
        else:
            growth, self._age = self._growth(top), between
            self._ceiling = max(self._ceiling, *(x / growth for x in values[self.k :]), -math.inf)
        self._tops = [*self._tops[-1:], top]
