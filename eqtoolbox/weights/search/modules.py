"""Module-level inspection: proposals from the order of layers, for what resists tracing."""

from collections.abc import Iterator

import torch
from torch import nn

from eqtoolbox.weights.families.diagonal import DiagonalSymmetry, Rescale, Scale
from eqtoolbox.weights.families.discrete import Permutation, Slots
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.diagonal import leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ParameterSymmetry

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NOTHING = (nn.Identity, nn.Dropout)
_HOMOGENEOUS = (*_NOTHING, nn.ReLU, nn.LeakyReLU, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d)
_EPSILON_LEFT = 3e-2  # residual that a normalisation's epsilon may leave


def propose_from_modules(model: nn.Module) -> Iterator[ParameterSymmetry]:
    """Rescale, scale, GL(d) and permutations between neighbours of every `nn.Sequential`.

    They are proposals like any other: what is between the layers at run time is for the numerical
    check to say.
    """
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        layers = [(f"{prefix}.{n}" if prefix else n, m) for n, m in module.named_children()]
        for k, (name, layer) in enumerate(layers):
            if isinstance(layer, _LINEAR):
                yield from _after(name, layer, layers[k + 1 :])


def _after(
    name: str, layer: nn.Module, rest: list[tuple[str, nn.Module]]
) -> Iterator[ParameterSymmetry]:
    """What a linear layer and the next one with weights allow."""
    between: list[nn.Module] = []
    for other, following in rest:
        if isinstance(following, _NORMS) and all(isinstance(m, _NOTHING) for m in between):
            legs = tuple(leg(*_made(name, layer, p), 0, *_every(p, 1, 1.0)) for p in _own(layer))
            units = len(layer.weight)  # type: ignore[arg-type]
            yield Scale(name=name, dimension=units, legs=legs, tolerance=_EPSILON_LEFT)
            return
        if isinstance(following, _LINEAR):
            if not any(next(m.parameters(), None) is not None for m in between):
                yield from _pair(name, layer, other, following, between)
            return
        between.append(following)


def _pair(
    name: str, layer: nn.Module, other: str, following: nn.Module, between: list[nn.Module]
) -> Iterator[ParameterSymmetry]:
    weight, columns = layer.weight, following.weight
    assert isinstance(weight, nn.Parameter)
    assert isinstance(columns, nn.Parameter)
    units, wide = len(weight), columns.shape[1]
    if wide % units:
        return
    copies = wide // units  # after a flatten each unit owns a run of columns
    title = f"{name}-{other}"
    every = torch.arange(units)
    runs = torch.arange(wide).reshape(units, copies)
    slots = [Slots(f"{name}.{p}", 0, every[:, None]) for p, _ in layer.named_parameters()]
    slots.append(Slots(f"{other}.weight", 1, runs))
    yield Permutation(name=title, dimension=units - 1, slots=tuple(slots))
    if all(isinstance(m, _NOTHING) for m in between) and copies == 1:
        rows = [MatrixLeg(s.name, 0, every[None, None], 1) for s in slots[:-1]]
        out = MatrixLeg(f"{other}.weight", 1, every[None, None], -1)
        yield GeneralLinear(name=title, dimension=units**2, legs=(*rows, out))
    elif all(isinstance(m, _HOMOGENEOUS) for m in between):
        into = [leg(*_made(name, layer, p), 0, *_every(p, 1, 1.0)) for p in _own(layer)]
        out_of = leg(f"{other}.weight", tuple(columns.shape), 1, *_every(columns, copies, -1.0))
        yield _rescale(title, units, (*into, out_of))


def _rescale(name: str, units: int, legs: tuple[object, ...]) -> DiagonalSymmetry:
    return Rescale(name=name, dimension=units, legs=legs)  # type: ignore[arg-type]


def _own(layer: nn.Module) -> list[torch.Tensor]:
    return list(layer.parameters())


def _made(name: str, layer: nn.Module, own: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    title = next(n for n, p in layer.named_parameters() if p is own)
    return f"{name}.{title}", tuple(own.shape)


def _every(
    parameter: torch.Tensor, copies: int, rate: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions, units and rates of a whole axis, `copies` neighbours to a unit."""
    length = parameter.shape[0 if rate > 0 else 1]
    positions = torch.arange(length)
    return positions, positions // copies, torch.full((length,), rate, dtype=torch.float64)
