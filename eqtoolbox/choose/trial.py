"""A trial: networks with a symmetry and without, trained alike and judged on the same folds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.choose.folds import Gain, gain
from eqtoolbox.choose.fresh import fresh
from eqtoolbox.choose.laplace import evidence
from eqtoolbox.choose.learning import Learning
from eqtoolbox.choose.suggestion import Suggestion
from eqtoolbox.choose.ways import Way, build
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.structure import first

FITTED = {"relative error": -0.5, "accuracy": 0.9}  # of training samples, from which on it fits
Scores = tuple[float, float]
Maker = Callable[[nn.Module, int], nn.Module]  # of a fresh network and the number of a fold


@dataclass(frozen=True, kw_only=True)
class FoldTrial:
    """What all networks have in common."""

    model: nn.Module
    learning: Learning
    deals: list[tuple[Tensor, Tensor]]  # rows to train on, rows held out
    folds: int
    seed: int
    bar: Any  # of progress
    plain: list[Scores] = field(default_factory=list)  # as it is, by fold

    def scores(self, make: Maker, numbers: range) -> list[Scores]:
        """Held-out scores of some folds: those told and those that decide."""
        found = []
        for j in numbers:
            train, held = self.deals[j]
            network = make(fresh(self.model, self.seed + j)[0], j)
            self.learning.learned(network, train, self.seed + j)
            found.append(self.learning.judged(network, held))
            self.bar.update()
        return found

    def row(
        self,
        known: Suggestion,
        way: Way,
        by_fold: Callable[[int], Equivariance | None] | None = None,
    ) -> Suggestion:
        """One way to have a claim; folds are dealt again only where the first deal gains.

        Args:
            known: the claim and what data and model say of it.
            way: to have it.
            by_fold: the claim as inferred from the training rows of a fold; None there: as it is.
        """
        try:
            built = build(way, fresh(self.model, self.seed)[0], known.claim, self._sample())
        except (ValueError, TypeError, RuntimeError, LookupError) as reason:
            return replace(known, way=way, outcome="not tried", note=str(reason))

        def make(network: nn.Module, j: int) -> nn.Module:
            claim = known.claim if by_fold is None else by_fold(j)
            if claim is None:
                return network
            return build(
                way, network, claim, self._sample(), seed=self.seed + j, widen=built.widen
            ).network

        scores = self.scores(make, range(self.folds))
        if self._gain(scores, 1).value > 0.0:
            scores += self.scores(make, range(self.folds, len(self.deals)))
        told, decides = self._gain(scores, 0), self._gain(scores, 1)
        agree = told.value * decides.value > 0.0
        return replace(
            known, way=way, outcome=decides.verdict if agree else "none", gain=told,
            decides=decides, score=sum(s for s, _ in scores) / len(scores), weights=built.weights,
            call=built.call,
        )  # fmt: skip

    def _gain(self, scores: list[Scores], which: int) -> Gain:
        plain = self.plain[: len(scores)]
        return gain([s[which] for s in scores], [s[which] for s in plain], self.folds)

    def weighed(self, row: Suggestion) -> Suggestion:
        """A row with its evidence, where it was tried and is no augmentation."""
        if row.gain is None or row.way == "augmented":
            return row
        return replace(row, evidence=evidence(self.trained(row), self.learning)[0])

    def as_it_is(self) -> tuple[float | None, list[str]]:
        """Evidence of the model as it is, and what is to be said of its training on all samples."""
        network, learning = self.trained(), self.learning
        found, why = evidence(network, learning)
        score = learning.judged(network, torch.cat(self.deals[0]))[0]
        notes = [why] if why else []
        if score < FITTED.get(learning.unit, score):
            notes.append(
                f"the model as it is does not fit the samples that it was trained on, "
                f"{learning.unit} {abs(score):.2g}: a gain may be one of speed; give more steps"
            )
        return found, notes

    def trained(self, row: Suggestion | None = None) -> nn.Module:
        """The model as it is, or of a row, trained on all samples."""
        network = fresh(self.model, self.seed)[0]
        if row is not None:
            way: Way = row.way  # type: ignore[assignment]
            network = build(way, network, row.claim, self._sample()).network
        rows = torch.cat(self.deals[0]).sort().values
        return self.learning.learned(network, rows, self.seed)

    def _sample(self) -> Any:
        return self.learning.given(first(self.learning.inputs, 2))
