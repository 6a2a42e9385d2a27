"""Candidates: several ways in which one model may be brought nearest to another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from eqtoolbox.act.answers import Answers, Seen
from eqtoolbox.act.ascent import Ascent
from eqtoolbox.act.assignment import Matching, flipped, reflected, turned
from eqtoolbox.act.motion import Motion
from eqtoolbox.weights.families.discrete import SignFlip
from eqtoolbox.weights.parameter import Parameters, ParameterSymmetry

By = Literal["weights", "activations", "either"]
Way = Literal["as it stood", "weights", "activations", "activations, then weights"]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """From B balanced, by its weights and by what its units answer."""

    model: nn.Module
    matching: Matching
    goal: Parameters  # A, balanced
    start: Parameters  # B, balanced, with the buffers that move along
    ask: Callable[[Parameters], Seen]  # answers of B at such a point
    answers: Callable[[], Seen]  # of A

    def of(self, by: By) -> Iterator[tuple[Way, Ascent]]:
        """Each with how it was found."""
        if by == "either":
            yield "as it stood", Ascent(self.goal, dict(self.start))
        if by != "activations":
            both = sorted(self.by_weights(), key=Ascent.distance)
            yield from (("weights", a) for a in both[: 1 if by == "weights" else 2])
        if by != "weights":
            answers = self.answers()
            single = [f for f in self.matching.flips if f.dimension == 1]  # signs of a whole stream
            for flip in (None, *single):
                found = self.by_activations(answers, flip)
                yield "activations", found
                further = Ascent(self.goal, dict(found.here), list(found.motions))
                yield "activations, then weights", further.climb(self.matching)

    def by_weights(self) -> list[Ascent]:
        """From where B stands, and from invariants of its units."""
        both = [Ascent(self.goal, dict(self.start)) for _ in range(2)]
        return [both[0].climb(self.matching), both[1].start(self.matching).climb(self.matching)]

    def by_activations(self, answers: Seen, first: SignFlip | None) -> Ascent:
        """Every symmetry once: what it permutes, reflects and turns are the answers themselves."""
        ascent, matching = Ascent(self.goal, dict(self.start)), self.matching
        if first is not None:
            ascent.take([reflected(first, torch.tensor([0]))], always=True)
        evidence, stale = Answers(self.model, answers, self.ask(ascent.here)), set[str]()
        beside = set[int]()

        def take(symmetry: ParameterSymmetry, find: Callable[[Answers], list[Motion]]) -> None:
            nonlocal evidence
            if stale & set(symmetry.names):
                evidence = Answers(self.model, answers, self.ask(ascent.here))
                stale.clear()
            if ascent.take(find(evidence), always=True):
                stale.update(symmetry.names)

        for p in matching.permuting:
            take(p, lambda e, p=p: matching.permuted(p, e, ascent.here))  # type: ignore[misc]
            mixers, flips = matching.beside(p)
            beside |= {id(s) for s in (*mixers, *flips)}
        for f in (f for f in matching.flips if id(f) not in beside):
            take(f, lambda e, f=f: flipped(f, e))  # type: ignore[misc]
        for m in (m for m in matching.mixers if id(m) not in beside):
            take(m, lambda e, m=m: turned(m, e))  # type: ignore[misc]
        return ascent
