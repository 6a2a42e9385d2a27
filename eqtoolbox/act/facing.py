"""Facing: two models of one architecture, balanced, and what is asked of them on a batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.act.answers import Seen, seen
from eqtoolbox.act.ascent import Ascent
from eqtoolbox.act.assignment import Matching
from eqtoolbox.act.composed import collapsed
from eqtoolbox.act.contenders import By, Candidates, Way
from eqtoolbox.act.function import LiveFunction, distance, observe
from eqtoolbox.act.gauge import applied, balancing, inverse
from eqtoolbox.act.motion import Motion
from eqtoolbox.act.path import Segment, end_of
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters, ParameterSymmetry

ALIKE = 1e-6  # rise of the loss, relative, that says nothing


class Facing:
    """A model and its reference."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        batch: Any,
        loss_fn: LossFunction,
        symmetries: Sequence[ParameterSymmetry],
    ) -> None:
        self.models, self.batch, self.loss_fn = (model, reference), batch, loss_fn
        self.function = LiveFunction.of(model, batch, loss_fn)
        self.matching = Matching.of(symmetries)
        names = dict.fromkeys(n for s in symmetries for n in s.names)
        along = dict.fromkeys(n for s in symmetries for n in s.buffers)
        continuous = [s for s in symmetries if isinstance(s, ContinuousSymmetry)]
        own, other = (_tensors(m, names) for m in self.models)
        self.buffers = _tensors(model, along)
        self.own = {**own, **self.buffers}
        self.to_balance, back = balancing(continuous, own), balancing(continuous, other)
        self.from_balance = [inverse(m) for m in back]
        self.start = {**applied(self.to_balance, own), **self.buffers}
        self.goal = applied(back, other)

    def best(self, by: By) -> tuple[Way, Ascent]:
        """Of all candidates the one with the lowest rise half-way; the nearest of those alike."""
        ask = partial(self._seen, self.models[0])
        candidates = Candidates(
            model=self.models[0],
            matching=self.matching,
            goal=self.goal,
            start=self.start,
            ask=ask,
            answers=partial(self._seen, self.models[1], self.goal),
        )
        found = list(candidates.of(by))
        if len(found) == 1:
            return found[0]
        ends = sum(self._line(found[0][1], t) for t in (0.0, 1.0)) / 2
        rises = [max(self._line(ascent, 0.5) - ends, 0.0) for _, ascent in found]
        alike = [k for k, x in enumerate(rises) if x - min(rises) <= ALIKE * abs(ends)]
        return found[min(alike, key=lambda k: found[k][1].distance())]

    def motions(self, ascent: Ascent) -> list[Motion]:
        """From where the model stands to where it ends; none if it stays."""
        if not ascent.motions:
            return []
        return collapsed([*self.to_balance, *ascent.motions, *self.from_balance])

    def distance(self) -> float:
        """|A - B| / |A| over all parameters."""
        own, other = (dict(m.named_parameters()) for m in self.models)
        gap = {n: p.detach().double() - other[n].detach().to(p).double() for n, p in own.items()}
        return _norm(gap) / max(_norm(dict(other)), 1e-300)

    def relative(self, ascent: Ascent) -> float:
        """Likewise in balanced weights, of what moves."""
        return math.sqrt(ascent.distance()) / max(_norm(self.goal), 1e-300)

    def live(self, motions: Sequence[Motion]) -> LiveFunction:
        """The model there, rounded to its types."""
        moved = applied(motions, self.own)
        params = {n: moved[n].to(p) if n in moved else p for n, p in self.function.params.items()}
        own = self.function.objective.buffers
        return replace(
            self.function, params=params, buffers={n: moved[n].to(own[n]) for n in self.buffers}
        )

    def exactly(self, motions: Sequence[Motion]) -> float:
        """Relative change of the outputs in float64."""
        objective, exact = self.function.objective.to(torch.float64), self.function.exact
        before = observe(objective, {**exact, **self.buffers})
        after = observe(objective, {**exact, **applied(motions, self.own)})
        return distance(after.outputs, before.outputs)

    def _seen(self, model: nn.Module, at: Parameters) -> Seen:
        """Answers of a model at balanced parameters."""

        def body(inner: nn.Module) -> Seen:
            with seen(inner) as found:
                self.loss_fn(inner, self.batch)
            return found

        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        objective = replace(
            self.function.objective,
            model=model,
            buffers={n: b.detach() for n, b in model.named_buffers()},
        )
        with torch.no_grad():
            answers: Seen = objective.within({n: x.to(live[n]) for n, x in at.items()}, body)
        return answers

    def _line(self, ascent: Ascent, t: float) -> float:
        """Loss on the line from the reference to the model there."""
        model, reference = self.models
        params, buffers = end_of(model)
        if ascent.motions:
            moved = applied(self.from_balance, ascent.here)
            params = {n: moved[n].to(p) if n in moved else p for n, p in params.items()}
            buffers = {n: moved[n].to(b) if n in moved else b for n, b in buffers.items()}
        line = Segment(
            reference, (end_of(reference), (params, buffers)), self.loss_fn, [self.batch]
        )
        loss: float = line.losses(t, [self.batch])[0][0]
        return loss


def _tensors(model: nn.Module, names: Parameters | dict[str, None]) -> dict[str, Tensor]:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    return {n: own[n].detach().double() for n in names}


def _norm(tensors: Parameters) -> float:
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in tensors.values()))
