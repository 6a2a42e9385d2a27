"""What a model answers at some parameters, and what its normalisations see there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.call import Call
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective
from eqtoolbox.replay.statistics import running
from eqtoolbox.replay.thread.scope import only_here
from eqtoolbox.replay.tree import tensors
from eqtoolbox.symmetry.floor import Rounding

Channels = Mapping[str, tuple[Tensor, Tensor]]  # mean and variance by the module that keeps them
DRAWS = 2  # of roundings, of which the larger change counts
STILL = 1e-9  # relative change of a channel that is none


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One evaluation: the outputs of the loss's first call of the model, and the loss."""

    outputs: Tensor  # all of them in one row, float64
    loss: float
    channels: Channels  # mean and variance that each keeper saw


def observe(objective: Objective, params: Mapping[str, Tensor]) -> Observed:
    """Evaluate the objective in its modes, at `params` and buffers among them.

    Raises:
        LookupError: the loss never calls the model itself.
    """

    def body(model: nn.Module) -> tuple[Call, dict[str, tuple[Tensor, Tensor]]]:
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str) -> Any:
            return only_here(lambda _, given: seen.update({name: _moments(given[0])}))

        keepers = [n.rpartition(".")[0] for n in running(dict(model.named_buffers()))]
        modules = dict(model.named_modules())
        handles = [modules[n].register_forward_pre_hook(note(n)) for n in dict.fromkeys(keepers)]
        try:
            return objective.call_of(model), seen
        finally:
            for handle in handles:
                handle.remove()

    with torch.no_grad():
        call, seen = objective.within(params, body, train=True)
    rows = [x.detach().double().flatten() for x in tensors(call.output) if x.is_floating_point()]
    if not rows:
        raise LookupError("the model gives no floating-point tensor: its function cannot be seen")
    return Observed(outputs=torch.cat(rows), loss=float(call.loss or 0.0), channels=seen)


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


@dataclass(frozen=True, kw_only=True)
class LiveFunction:
    """A model at some parameters and running statistics: in its own precision and in float64."""

    objective: Objective
    params: dict[str, Tensor]  # that train
    buffers: dict[str, Tensor] = field(default_factory=dict)  # other than the objective's

    @classmethod
    def of(cls, model: nn.Module, batch: Any, loss_fn: LossFunction) -> "LiveFunction":
        """The model as it is now."""
        objective = Objective(
            model=model,
            loss_fn=loss_fn,
            batch=batch,
            random=RandomState(),
            buffers={n: b.detach().clone() for n, b in model.named_buffers()},
        )
        return cls(objective=objective, params=objective.parameters())

    @cached_property
    def seen(self) -> Observed:
        """What it answers in its own modes and precision."""
        return observe(self.objective, {**self.params, **self.buffers})

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """The parameters in float64."""
        return {n: p.double() for n, p in self.params.items()}

    def floor(self, roundings: int) -> float:
        """Relative change of outputs when parameters and results are rounded once more by chance.

        As the floor of an equivariance error is measured (`eqtoolbox.symmetry.floor`); parameters
        are off by `roundings` in float64 where that is more than one of their own.
        """
        generator = torch.Generator(self.seen.outputs.device).manual_seed(0)
        largest = max(torch.finfo(p.dtype).eps for p in self.params.values())
        for _ in range(DRAWS):
            near = {n: _nudged(p, roundings, generator) for n, p in self.params.items()}
            with Rounding(generator):
                answer = observe(self.objective, {**near, **self.buffers}).outputs
            largest = max(largest, distance(answer, self.seen.outputs))
        return largest

    def there(self, moved: Mapping[str, Tensor]) -> "LiveFunction":
        """The model at other parameters, rounded to their types, its statistics moved along."""
        new = {n: moved[n].to(p) if n in moved else p for n, p in self.params.items()}
        buffers = {n: b.to(self.objective.buffers[n]) for n, b in self.statistics(moved).items()}
        return replace(self, params=new, buffers=buffers)

    def change(self, other: "LiveFunction", keep: str) -> float:
        """Relative change of the outputs, or of the loss."""
        if keep == "function":
            return distance(self.seen.outputs, other.seen.outputs)
        return abs(self.seen.loss - other.seen.loss) / max(abs(other.seen.loss), 1e-300)

    def statistics(self, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Running statistics that moved parameters need, float64."""
        if not self._channels:
            return {}
        now = observe(self._training, {**self.exact, **moved})
        return followed(self._statistics, self._channels, now.channels)

    def changes(self, moved: Mapping[str, Tensor]) -> dict[str, float]:
        """Relative change of the outputs in float64, in each mode that gives other ones."""
        there = {**self.exact, **moved, **self.statistics(moved)}
        return {
            mode: distance(observe(objective, there).outputs, outputs)
            for mode, (objective, outputs) in self._modes.items()
        }

    @cached_property
    def _modes(self) -> dict[str, tuple[Objective, Tensor]]:
        exact, model = self.objective.to(torch.float64), self.objective.model
        objectives = {"training" if model.training else "evaluation": exact}
        if self._channels:
            objectives |= {"training": self._training, "evaluation": _flagged(exact, False)}
        return {k: (o, observe(o, self.exact).outputs) for k, o in objectives.items()}

    @cached_property
    def _training(self) -> Objective:
        exact = self.objective.to(torch.float64)
        return exact if self.objective.model.training else _flagged(exact, True)

    @cached_property
    def _statistics(self) -> dict[str, Tensor]:
        return dict(running(self.objective.buffers))

    @cached_property
    def _channels(self) -> Channels:
        """What normalisations see in training; empty without running statistics."""
        if not self._statistics:
            return {}
        try:
            return observe(self._training, self.exact).channels
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return {}  # one sample: nothing can be normalised as in training


def _flagged(objective: Objective, training: bool) -> Objective:
    return replace(objective, flags=(training,) * len([*objective.model.modules()]))


def followed(
    statistics: Mapping[str, Tensor],
    before: Channels,
    after: Channels,
) -> dict[str, Tensor]:
    """Running statistics of channels x that became a x + s, a > 0: a m + s and a^2 v.

    Args:
        statistics: as they are, by name of the buffer.
        before: mean and variance of each keeper's channels on a batch.
        after: the same on the same batch after the move.

    Returns:
        Those that change, float64.
    """
    found: dict[str, Tensor] = {}
    for name, (mean, variance) in before.items():
        keys = [f"{name}.{key}" if name else key for key in ("running_mean", "running_var")]
        own = [statistics[k].double() for k in keys if k in statistics]
        if len(own) < 2 or name not in after or own[0].shape != mean.shape:
            continue
        factor = torch.where(variance > 0, (after[name][1] / variance).sqrt(), 1.0)
        shift = after[name][0] - factor * mean
        moved = (factor - 1).abs() > STILL, shift.abs() > STILL * variance.sqrt()
        if bool((moved[0] | moved[1]).any()):
            found[keys[0]] = torch.where(moved[0] | moved[1], factor * own[0] + shift, own[0])
            found[keys[1]] = torch.where(moved[0], factor.square() * own[1], own[1])
    return found


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, along axis 1."""
    axes = [a for a in range(x.dim()) if a != 1]
    variance, mean = torch.var_mean(x.detach().double(), axes, correction=0)
    return mean, variance


def _nudged(tensor: Tensor, roundings: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator, device=generator.device)
    off = max(torch.finfo(tensor.dtype).eps, roundings * torch.finfo(torch.float64).eps)
    return tensor + tensor * (off * noise).to(tensor)
