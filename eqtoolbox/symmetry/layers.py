"""Layers of a model under a transformation: what they make, and which action fits it best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.record.record import VIOLATED
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.operations import Operations
from eqtoolbox.replay.streams import RandomState, random_streams
from eqtoolbox.replay.thread.scope import only_here
from eqtoolbox.replay.tree import map_tensors
from eqtoolbox.symmetry.actions.action import SPATIAL, Action, inside_of, trivial
from eqtoolbox.symmetry.actions.boosts import Boost, FeatureBoost
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import Rebuilt
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.orbit import distance, double, marked, square
from eqtoolbox.symmetry.structure import Tree, floating, on_tensors

_SAMPLES = 4  # group elements that layers are compared at
_RANDOM = 100.0  # difference of two runs of a random layer, in roundings
_MISFIT = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Activation:
    """The first call of one module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Tensor | None  # its first floating-point tensor
    made: Tensor


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The violation of the network up to one layer, under the action that fits it best."""

    layer: str  # name of the module
    kind: str  # its class
    error: float  # relative; NaN: no candidate action fits its shape
    action: str  # the hidden action, or "" when none fits
    rounding: float = 0.0  # the error that rounding and the action's interpolation make
    entering: float = 0.0  # of the first broken layer's input likewise; NaN: none fits

    @property
    def broken(self) -> bool:
        """Whether the error is above its rounding without doubt."""
        return self.error > VIOLATED * self.rounding

    @property
    def broken_before(self) -> bool:
        """Whether its input is broken already, by something that is no layer."""
        return self.entering > VIOLATED * self.rounding


def activations(
    model: nn.Module, inputs: Tree, seed: int = 0, like: Tree = None
) -> dict[str, Activation]:
    """First call of every innermost module that runs, by name, in order of execution.

    A module whose children are never called by themselves, such as an attention, counts as one.
    Inputs require gradients where those of `like` do, where they themselves do without it.
    """
    like = inputs if like is None else like
    seen: dict[str, Activation] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            made, given = floating(output), floating((args, kwargs))
            inner = any(other.startswith(f"{name}.") for other in seen)
            if made and name not in seen and not inner:
                entered = given[0].detach() if given else None
                args, kwargs = map_tensors(Tensor.detach, (args, kwargs))
                seen[name] = Activation(args, kwargs, entered, made[0].detach().clone())

        return hook

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(only_here(watch(name)), with_kwargs=True))
    drawn = random_streams(RandomState.seeded(seed))
    try:
        with torch.no_grad(), Operations(), drawn:  # a fast path would skip the layers inside
            valued(marked(partial(call, model), like), on_tensors(torch.clone, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def call(model: nn.Module, x: Tree) -> Tree:
    """The model on copies of its buffers; a tuple holds its arguments."""
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    return torch.func.functional_call(model, buffers, x if isinstance(x, tuple) else (x,))


@dataclass(frozen=True, kw_only=True)
class Unmoved:
    """What the layers of a model make of x itself: the same for every claim about it."""

    base: dict[str, Activation]
    rounding: dict[str, float]  # what x off by one rounding changes at each layer, relative
    random: str | None  # first layer that answers twice differently

    @classmethod
    def of(cls, model: nn.Module, inputs: Tree, again: bool = True) -> "Unmoved":
        """Run the model at x, at x off by one rounding, and `again` with other random numbers."""
        base = activations(model, inputs)
        near = nudged(inputs, torch.Generator().manual_seed(1))
        near = activations(model, near, like=inputs)
        rounding = {name: distance(near[name].made, at.made) for name, at in base.items()}
        other, random = activations(model, inputs, seed=1) if again else {}, None
        for name in (n for n in base if n in other):
            made = base[name].made
            if distance(other[name].made, made) > _RANDOM * torch.finfo(made.dtype).eps:
                random = name
                break
        return cls(base=base, rounding=rounding, random=random)


@dataclass(frozen=True)
class Layers:
    """Activations of a model at x and at S_g x, and the hidden actions that fit them."""

    base: dict[str, Activation]
    moved: list[dict[str, Activation]]
    errors: tuple[LayerError, ...]
    actions: dict[str, Action]  # the best fitting one by layer, where one fits

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tree,
        symmetry: Equivariance,
        hidden: Mapping[str, Action] | None = None,
        unmoved: Unmoved | None = None,
    ) -> "Layers":
        """Run the model at up to 4 elements, and at x where that is not known."""
        known = dict(hidden or {})
        elements = _elements(symmetry)
        unmoved = unmoved or Unmoved.of(model, inputs, again=False)
        base = unmoved.base
        given = [symmetry.input_action(g, inputs) for g in elements]
        moved = [activations(model, x, like=inputs) for x in given]
        kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        errors: list[LayerError] = []
        actions: dict[str, Action] = {}
        for name, at in base.items():
            choices = [known[name]] if name in known else candidate_actions(symmetry)
            made = [m[name].made for m in moved if name in m]
            rounding = max(unmoved.rounding[name], 8 * torch.finfo(at.made.dtype).eps)
            bar = VIOLATED * rounding
            error, action = _best(choices, elements, at.made, made, bar)
            if action is not None:
                actions[name] = action
                rounding = max(rounding, _trip(action, symmetry, elements, at.made))
            entering = 0.0
            first = error > VIOLATED * rounding and not any(e.broken for e in errors)
            if first and at.given is not None:
                given = [x for m in moved if name in m and (x := m[name].given) is not None]
                entering = _best(choices, elements, at.given, given, bar)[0]
            errors.append(
                LayerError(
                    layer=name,
                    kind=kinds[name],
                    error=error,
                    action="" if action is None else label(action),
                    rounding=rounding,
                    entering=entering,
                )
            )
        return cls(base, moved, tuple(errors), actions)


def nudged(inputs: Tree, rng: torch.Generator) -> Tree:
    """x (1 + eps randn), integers as they are."""

    def nudge(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.device)
        return (x.double() * (1 + torch.finfo(x.dtype).eps * noise)).to(x)

    return on_tensors(nudge, inputs)


def candidate_actions(symmetry: Equivariance) -> list[Action]:
    """Hidden actions worth trying, each once."""
    action = symmetry.input_action
    action = action.action if isinstance(action, Rebuilt) else action
    named: list[Action] = [action, symmetry.output_action, trivial]
    for side in (symmetry.output_action, action):
        parts = getattr(side, "parts", None)
        if parts is not None:
            named = _leaves(parts) + named
    if any(isinstance(a, Permute) for a in named):
        named += [Permute(-2), Permute(-1), Permute(-2, -1)]
    unique: list[Action] = []
    for candidate in named:
        if candidate not in unique and not hasattr(candidate, "parts"):
            unique.append(candidate)
    return unique


def label(action: Action) -> str:
    """How an action is called in words."""
    return getattr(action, "__name__", repr(action))


def _leaves(parts: Any) -> list[Action]:
    if callable(parts):
        return [parts]
    children = parts.values() if isinstance(parts, Mapping) else parts
    return [leaf for child in children for leaf in _leaves(child)]


def _elements(symmetry: Equivariance) -> list[Element]:
    group = symmetry.group
    if group.order is not None and group.order - 1 <= _SAMPLES:
        return [g for g in group.elements() if g != group.identity]
    drawn = group.sample(_SAMPLES + 1, torch.Generator().manual_seed(0))
    return [g for g in drawn if g != group.identity][:_SAMPLES]


def _best(
    choices: list[Action], elements: list[Element], x: Tensor, moved: list[Tensor], bar: float
) -> tuple[float, Action | None]:
    """Smallest error over the actions that fit, and the first of them that has it.

    Boosts have no action on features of their own; one is fitted where nothing else is sound.
    """
    if len(moved) < len(elements):
        return math.nan, None
    tried = [(_error(action, elements, x, moved), action) for action in choices]
    if not any(e <= bar for e, _ in tried):
        for cells in sorted({a.cells for a in choices if isinstance(a, Boost)}):
            action = FeatureBoost.fitted(elements, x, moved, cells)
            if action is not None:
                tried.append((_error(action, elements, x, moved), action))
    fitting = [(e, a) for e, a in tried if not math.isnan(e)]
    return min(fitting, key=lambda pair: pair[0]) if fitting else (math.nan, None)


def _error(action: Action, elements: list[Element], output: Tensor, moved: list[Tensor]) -> float:
    if action in SPATIAL and output.dim() < 4:
        return math.nan
    above = below = 0.0
    for g, response in zip(elements, moved, strict=True):
        try:
            expected = inside_of(action, action(g, output))
            response = inside_of(action, response)
        except _MISFIT:
            return math.nan
        if not isinstance(expected, Tensor) or expected.shape != response.shape:
            return math.nan
        right = double(expected)
        above += float(square(double(response) - right))
        below += float(square(right))
    return math.sqrt(above / below) if below > 0 else 0.0


def _trip(action: Action, symmetry: Equivariance, elements: list[Element], x: Tensor) -> float:
    """|S^-1 S x - x| / |x|: what the action itself does to an activation."""
    group = symmetry.group
    if action is trivial or not group.invertible:
        return 0.0
    trips = [
        distance(inside_of(action, action(group.inverse(g), action(g, x))), inside_of(action, x))
        for g in elements
    ]
    return max(trips)
