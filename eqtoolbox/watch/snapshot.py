"""A snapshot: one optimizer step, from theta_t to theta_{t+1}, frozen for measuring."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.linalg.vectors import not_finite
from eqtoolbox.record.record import Product
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.statistics import along
from eqtoolbox.replay.thread.scope import LeavesTrace
from eqtoolbox.replay.window import in_pieces
from eqtoolbox.watch.shared import Shared
from eqtoolbox.world.layout import local
from eqtoolbox.world.shards import ALONE, Shards
from eqtoolbox.world.world import World

REMEDY = "monitor.loss"
REMEDIES = (REMEDY, "callback.loss")  # what reasons name that giving a loss would mend
OTHER = "other gradient"  # told: why the one that was used is not the loss's
TIMES = "times gradient"  # told: how many times the loss's the one that was used is


class NoRoom(Exception):
    """A probe would take more memory than it may; the message says how much, and what to do."""


class NotApplicable(Exception):
    """A probe has nothing to measure here; the message says why and what would change that."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """What the optimizer did with one parameter group in this step; NaN where it has no such."""

    names: tuple[str, ...]
    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool = False
    maximize: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # everything else the optimizer keeps


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A gradient that was replayed, of which loss, where and at which scale."""

    objective: Objective
    before: Parameters
    scale: float
    gradient: Parameters


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One optimizer step: parameters around it, gradient, batch and the loss as a pure function."""

    step: int
    before: Parameters  # theta_t, trainable parameters by name
    after: Parameters | None  # theta_{t+1}; None outside an optimizer step
    gradient: Parameters | None  # at theta_t, as the optimizer was given, of what it holds at least
    groups: tuple[ParameterGroup, ...]
    optimizer: str  # class name
    state: dict[str, dict[str, Any]]  # the optimizer's, by parameter name, after the step
    training: Objective | None  # loss of the step's own batch
    measured: Objective | None  # loss of the probe batch where there is one, else the training's
    why_no_loss: str = ""
    shards: Shards = field(default=ALONE, repr=False)  # what of the parameters is held here
    world: World = field(default_factory=World, repr=False)  # whose ranks measure it
    shared: Shared = field(default_factory=Shared, repr=False)  # what the run found out so far
    identity: Hashable = field(default=(), repr=False)  # of the loss: what that depends on
    finite: bool = False  # whether `before` was seen to be
    copied: bool = True  # whether `gradient` is, beside what the optimizer was given
    light: bool = False  # whether the probe that measures is to say its headline alone, for less
    room: float = math.inf  # bytes that what is measured may take
    graph: float = 0.0  # bytes that autograd saves in one evaluation of the loss to measure on,
    once: float = 0.0  # and where what it saves is differentiated once
    parts: int = 1  # of each batch over which gradients are summed, one after the other
    seconds: float = math.inf  # that a search may take before it says what it has by then
    asked: Any = None  # what the probe that measures had launched of this step, see `Probe.ask`
    products: set[Product] = field(default_factory=set, repr=False, compare=False)  # inexact ones
    told: dict[str, Any] = field(default_factory=dict, repr=False)  # by probes, to later ones
    slopes: list[Slope] = field(default_factory=list, repr=False, compare=False)  # replayed so far

    @cached_property
    def update(self) -> Parameters:
        """theta_{t+1} - theta_t, exact: in the next wider floating-point type.

        Raises:
            NotApplicable: measured outside an optimizer step.
        """
        if self.after is None:
            raise NotApplicable("no optimizer step here: updates are measured in step()")
        return {n: _wide(self.after[n]) - _wide(self.before[n]) for n in self.before}

    @property
    def whole_gradient(self) -> Parameters | None:
        """The gradient that was given, where it is known of all parameters; else None."""
        return self.gradient if self.gradient and len(self.gradient) == len(self.before) else None

    @cached_property
    def objective(self) -> Objective:
        """The loss to measure on, in the parameters' own precision.

        Raises:
            NotApplicable: no loss is known; the message says how to give one.
        """
        if self.measured is None:
            raise NotApplicable(self.why_no_loss)
        return self.measured.unmixed()

    def slope(self, objective: Objective, scale: float = 1.0) -> Parameters:
        """Gradient of a loss at theta_t, replayed once for all who ask at this step.

        Args:
            objective: the loss; another object that is the same function of the same batch shares.
            scale: by which it is multiplied meanwhile, see `replayed_gradient`.
        """
        for known in self.slopes:
            here = known.before is self.before and known.scale == scale
            if here and _same(known.objective, objective):
                return known.gradient
        found = replayed_gradient(in_pieces(objective, self.parts), self.before, scale)
        known = Slope(objective=objective, before=self.before, scale=scale, gradient=found)
        self.slopes.append(known)
        return found

    def within(
        self, objective: Objective, copies: float, graphs: float, once: bool = False
    ) -> Objective:
        """As much of an objective as the memory has room for, where any part of the batch will do.

        Args:
            objective: on the batch to measure on, or on another as large.
            copies: of the parameters that are held beside it.
            graphs: how often what autograd saves in one evaluation is.
            once: whether it is differentiated once, as `replayed_gradient` does.

        Raises:
            NoRoom: not even the smallest part fits, or the loss takes no part.
        """
        whole, held = objective, copies * sum(p.nbytes for p in self.before.values())
        graph = graphs * (self.once if once else self.graph)
        while held + graph > self.room:
            try:  # several calls are evaluated one by one: fewer take no less
                if len(objective.calls) == 1:
                    objective.calls[0].split(4)  # of one sample nothing can be normalised
                    graph /= 2
                objective = objective.halved()
            except ValueError:
                raise NoRoom(no_room(held + graph, self.room, "few samples")) from None
        if objective is not whole and (why := refused(objective, self.before)):
            raise NoRoom(no_room(held + graph, self.room, f"a batch that cannot be cut ({why})"))
        return objective

    def at(self, params: Parameters, move: Callable[[Parameters], Parameters]) -> "Snapshot":
        """The same step with other parameters before it, and running statistics moved along."""
        measured = along(self.measured, move) if self.measured else None
        return replace(self, before=params, measured=measured)

    @cached_property
    def broken(self) -> str:
        """A parameter that is NaN or infinite before the step; empty if there is none."""
        return "" if self.finite else not_finite(self.before)

    def of_one(self) -> "Snapshot":
        """The same step as this process alone sees it: the loss of its own share."""
        if not self.world.several:
            return self
        training, measured = (o and o.share for o in (self.training, self.measured))
        return replace(self, training=training, measured=measured, slopes=[])

    @property
    def divisible(self) -> bool:
        """Whether what is measured can be halved."""
        try:
            self.halved()
        except ValueError:
            return False
        return self.measured is not None

    def halved(self) -> "Snapshot":
        """The same step, measured on half of its batch.

        Raises:
            ValueError: there is one sample only.
        """
        return replace(self, measured=self.measured.halved() if self.measured else None)

    def group_of(self, name: str) -> ParameterGroup | None:
        """The parameter group that holds `name`; None for a parameter the optimizer has not."""
        return self._group_by_name.get(name)

    @cached_property
    def _group_by_name(self) -> dict[str, ParameterGroup]:
        return {name: group for group in self.groups for name in group.names}


def no_room(need: float, room: float, what: str) -> str:
    """Why something is not measured, and what would change that."""
    return (
        f"it needs about {need / 2**20:.0f} MiB for {what}, and {room / 2**20:.0f} MiB are left of "
        "the peak that memory= allows; give a larger memory=, or a small probe_batch="
    )


def parameter_groups(
    optimizers: Sequence[torch.optim.Optimizer], named: Mapping[str, nn.Parameter]
) -> tuple[ParameterGroup, ...]:
    """The optimizers' groups with the model's names; parameters of other modules are left out."""
    names = {id(p): n for n, p in named.items()}

    def number(group: dict[str, Any], key: str, default: float) -> float:
        value = group.get(key, default)
        return float(value) if isinstance(value, (int, float, Tensor)) else default

    return tuple(
        ParameterGroup(
            names=tuple(names[id(p)] for p in group["params"] if id(p) in names),
            lr=number(group, "lr", float("nan")),
            weight_decay=number(group, "weight_decay", 0.0),
            momentum=number(group, "momentum", 0.0),
            nesterov=bool(group.get("nesterov", False)),
            maximize=bool(group.get("maximize", False)),
            options={k: v for k, v in group.items() if k != "params"},
        )
        for optimizer in optimizers
        for group in optimizer.param_groups
    )


def optimizer_state(
    optimizers: Sequence[torch.optim.Optimizer], named: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """The optimizers' state of every parameter that has one, by name; not copied."""
    return {
        name: {k: local(x) if isinstance(x, Tensor) else x for k, x in optimizer.state[p].items()}
        for name, p in named.items()
        for optimizer in optimizers
        if p in optimizer.state
    }


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` that require gradients, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def refused(objective: Objective, params: Parameters) -> str:
    """What a loss says to a part of its batch that it does not take; empty where it does."""
    try:
        return "" if bool(objective.loss(params).isfinite()) else "the loss is not finite there"
    except LeavesTrace:
        raise
    except Exception as error:  # whatever a user's loss says
        return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def _same(one: Any, other: Any) -> bool:
    """Whether two losses are one: made of the very same model, function, batch and state."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Objective):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (bool, int, float, str)) and one == other


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float64))
