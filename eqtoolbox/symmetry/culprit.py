"""The culprit: the first layer at which the violation leaves the floor, and the likely cause."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.record import VIOLATED
from eqtoolbox.symmetry.actions import SPATIAL, Action, trivial
from eqtoolbox.symmetry.causes import cause_of
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.fields import Field
from eqtoolbox.symmetry.linear import axial_vectors, pseudo_scalars, vectors
from eqtoolbox.symmetry.orbit import Function, distance, double
from eqtoolbox.symmetry.permuting import Permute
from eqtoolbox.symmetry.structure import Tree, floating, on_tensors

_RANDOM = 100.0  # difference of two runs of a random layer, in roundings
_SAMPLES = 4  # group elements that layers are compared at


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The violation of the network up to one layer, under the action that fits it best."""

    layer: str  # name of the module
    kind: str  # its class
    error: float  # relative; NaN: no candidate action fits its shape
    action: str  # the hidden action, or "" when none fits


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """Where an equivariance is lost."""

    layer: str | None  # first layer that leaves the floor; None: none does
    cause: str  # in words; "" without a culprit
    layers: tuple[LayerError, ...]  # in order of execution
    floor: float  # relative error of rounding


def culprit(
    model: nn.Module,
    inputs: Tree,
    symmetry: Equivariance,
    *,
    hidden: Mapping[str, Action] | None = None,
) -> Culprit:
    """The first layer whose prefix network breaks the claim, with a rule-based cause.

    The error of layer i is |h_i(S_g x) - rho_g h_i(x)| / |rho_g h_i(x)| for the network up to it,
    at up to 4 elements. Hidden actions rho are guessed: the input action where it fits the shape,
    the output action, the trivial one; the smallest error counts. An image flattened into rows has
    none of them and is left out. Layers with hidden vectors or irreps need `hidden`.

    The model runs as it is (in its mode, with dropout as set), on copies of its buffers.

    Args:
        model, inputs, symmetry: as in `equivariance_error`.
        hidden: action on the output of a module, by the module's name.

    Returns:
        The culprit; the claim's own output action is the suspect when no layer is.

    Example:
        >>> from eqtoolbox.symmetry.actions import quarter_turn
        >>> from eqtoolbox.symmetry.group import Cyclic
        >>> model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(2))
        >>> x = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(0))
        >>> claim = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> culprit(model, x, claim).layer
        '0'
    """
    elements = _elements(symmetry)
    known = dict(hidden or {})
    base = _activations(model, inputs)
    nudge = torch.Generator().manual_seed(1)
    near = _activations(model, _nudged(inputs, nudge))
    moved = [_activations(model, symmetry.input_action(g, inputs)) for g in elements]
    modules = dict(model.named_modules())
    candidates = _candidates(symmetry)
    again = _activations(model, inputs, seed=1)
    random = [n for n, (_, y) in base.items() if distance(again[n][1], y) > _RANDOM * _eps(y)]
    layers, floor, first = [], 0.0, None
    for name, output in base.items():
        rounding = max(distance(near[name][1], output[1]), 8 * _eps(output[1]))
        floor = max(floor, rounding)
        choices = [known[name]] if name in known else candidates
        tried = [
            (_error(action, elements, output[1], [m[name][1] for m in moved if name in m]), action)
            for action in choices
        ]
        fitting = [(e, a) for e, a in tried if not math.isnan(e)]
        error, action = min(fitting, key=lambda pair: pair[0]) if fitting else (math.nan, None)
        kind = type(modules[name]).__name__
        label = "" if action is None else _label(action)
        layers.append(LayerError(layer=name, kind=kind, error=error, action=label))
        if first is None and error > VIOLATED * rounding:
            first = name
    if random:
        first = random[0]
        cause = f"{type(modules[first]).__name__} is random: put the model in eval mode"
    elif first is not None:
        cause = cause_of(modules[first], *base[first], symmetry)
    else:
        cause = _wrong_output_action(model, inputs, symmetry)
    return Culprit(layer=first, cause=cause, layers=tuple(layers), floor=floor)


def better_output_action(function: Function, inputs: Tree, symmetry: Equivariance) -> str:
    """Name of another output action under which the claim holds; "" when there is none.

    Example:
        >>> from eqtoolbox.symmetry.matrices import O3
        >>> x = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> moment = lambda x: torch.linalg.cross(x[:, 0], x[:, 1])
        >>> better_output_action(moment, x, Equivariance(O3(), vectors, vectors))
        'axial_vectors'
    """
    others: dict[str, Action] = {
        "trivial": trivial,
        "the input action": symmetry.input_action,
        "vectors": vectors,
        "axial_vectors": axial_vectors,
        "pseudo_scalars": pseudo_scalars,
        "scalar_field": Field(0),
        "pseudo_scalar_field": Field(0, pseudo=True),
        "vector_field": Field(1),
    }
    for name, action in others.items():
        if action == symmetry.output_action:
            continue
        claim = Equivariance(symmetry.group, symmetry.input_action, action, name=symmetry.name)
        try:
            if equivariance_error(function, inputs, claim).verdict == "holds":
                return name
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError):
            continue
    return ""


def _wrong_output_action(model: nn.Module, inputs: Tree, symmetry: Equivariance) -> str:
    def function(x: Tree) -> Tree:
        return _call(model, x)

    result = equivariance_error(function, inputs, symmetry, check=False)
    if result.verdict != "violated":
        return ""
    found = better_output_action(function, inputs, symmetry)
    if found:
        return f"wrong output action: it holds for {found}; check R"
    return (
        "no single layer: the loss of symmetry lies between layers, or the output action is wrong"
    )


def _activations(
    model: nn.Module, inputs: Tree, seed: int = 0
) -> dict[str, tuple[Tensor | None, Tensor]]:
    """Input and output of every leaf module at its first call, by name, in order of execution."""
    seen: dict[str, tuple[Tensor | None, Tensor]] = {}
    handles = []

    def watch(name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            made, given = floating(output), floating(args)
            if made and name not in seen:
                first = given[0].detach() if given else None
                seen[name] = (first, made[0].detach().clone())

        return hook

    for name, module in model.named_modules():
        if name and next(module.children(), None) is None:
            handles.append(module.register_forward_hook(watch(name)))
    fork = torch.random.fork_rng(devices=[])
    try:
        with torch.no_grad(), fork:
            torch.manual_seed(seed)
            _call(model, on_tensors(torch.clone, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _call(model: nn.Module, x: Tree) -> Tree:
    """The model on copies of its buffers; a tuple holds its arguments."""
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    return torch.func.functional_call(model, buffers, x if isinstance(x, tuple) else (x,))


def _nudged(inputs: Tree, rng: torch.Generator) -> Tree:
    def nudge(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.device)
        return (x.double() * (1 + torch.finfo(x.dtype).eps * noise)).to(x)

    return on_tensors(nudge, inputs)


def _candidates(symmetry: Equivariance) -> list[Action]:
    """Hidden actions worth trying, each once."""
    named: list[Action] = [symmetry.input_action, symmetry.output_action, trivial]
    parts = getattr(symmetry.input_action, "parts", None)
    if parts is not None:
        named = _leaves(parts) + named
    if any(isinstance(a, Permute) for a in named):
        named += [Permute(-2), Permute(-1), Permute(-2, -1)]
    unique: list[Action] = []
    for action in named:
        if action not in unique:
            unique.append(action)
    return unique


def _leaves(parts: Any) -> list[Action]:
    if callable(parts):
        return [parts]
    children = parts.values() if isinstance(parts, Mapping) else parts
    return [leaf for child in children for leaf in _leaves(child)]


def _elements(symmetry: Equivariance) -> list[object]:
    group = symmetry.group
    if group.order is not None and group.order - 1 <= _SAMPLES:
        return [g for g in group.elements() if g != group.identity]
    drawn = group.sample(_SAMPLES + 1, torch.Generator().manual_seed(0))
    return [g for g in drawn if g != group.identity][:_SAMPLES]


def _error(action: Action, elements: list[object], output: Tensor, moved: list[Tensor]) -> float:
    if action in SPATIAL and output.dim() < 4:
        return math.nan
    above = below = 0.0
    for g, response in zip(elements, moved, strict=True):
        try:
            expected = action(g, output)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError):
            return math.nan
        if not isinstance(expected, Tensor) or expected.shape != response.shape:
            return math.nan
        right = double(expected)
        above += float((double(response) - right).square().sum())
        below += float(right.square().sum())
    return math.sqrt(above / below) if below > 0 else 0.0


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _label(action: Action) -> str:
    return getattr(action, "__name__", repr(action))


def summary(found: Culprit) -> str:
    """One sentence for a record's note.

    Example:
        >>> summary(Culprit(layer=None, cause="", layers=(), floor=0.0))
        ''
    """
    if found.layer is None:
        return found.cause
    return f"first broken at {found.layer}: {found.cause}"
