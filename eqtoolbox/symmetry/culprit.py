"""The culprit: the first layer at which the violation leaves the floor, and the likely cause."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.symmetry.actions.action import Action, trivial
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.fields import Field
from eqtoolbox.symmetry.actions.linear import axial_vectors, pseudo_scalars, vectors
from eqtoolbox.symmetry.actions.resampling import Turn, Zoom, band_limited
from eqtoolbox.symmetry.causes import ORDERED, Cause, Kind, cause_between, cause_of, operations
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.layers import LayerError, Layers, Unmoved, call
from eqtoolbox.symmetry.orbit import Function, require_inputs, told
from eqtoolbox.symmetry.structure import Tree, on_tensors


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """Where an equivariance is lost."""

    layer: str | None  # first layer that leaves the floor; None: none does
    cause: str  # in words; "" without a culprit
    layers: tuple[LayerError, ...]  # in order of execution
    floor: float  # relative error of rounding

    @property
    def kind(self) -> Kind:
        """Of the cause, where it is one that something is known against."""
        return self.cause.kind if isinstance(self.cause, Cause) else ""


@checked
def culprit(
    model: nn.Module,
    inputs: Tree,
    symmetry: Claimed,
    *,
    hidden: Mapping[str, Action] | None = None,
) -> Culprit:
    """The first layer whose prefix network breaks the claim, with a rule-based cause.

    The error of layer i is |h_i(S_g x) - rho_g h_i(x)| / |rho_g h_i(x)| for the network up to it,
    at up to 4 elements. Hidden actions rho are guessed: the input action where it fits the shape,
    the output action, the trivial one, under boosts a constant of each channel; the smallest error
    counts. An image flattened into rows has none of them and is left out. Layers with hidden
    vectors or irreps need `hidden`.

    The model runs as it is (in its mode, with dropout as set), on copies of its buffers.

    Args:
        model, inputs, symmetry: as in `equivariance_error`.
        hidden: action on the output of a module, by the module's name.

    Returns:
        The culprit; the claim's own output action is the suspect when no layer is. None and no
        cause where rows of the batch are parts of samples (`Equivariance.rows`).

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions.action import quarter_turn
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(2))
        >>> x = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(0))
        >>> claim = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> culprit(model, x, claim).layer
        '0'
    """
    return blamed(model, inputs, symmetry, hidden)


def blamed(
    model: nn.Module,
    inputs: Tree,
    symmetry: Equivariance,
    hidden: Mapping[str, Action] | None = None,
    unmoved: Unmoved | None = None,
) -> Culprit:
    """As `culprit`, which checks its arguments; of several claims what x itself makes is known."""
    if in_parts(inputs, symmetry.rows):
        return Culprit(layer=None, cause="", layers=(), floor=0.0)  # layers see no samples
    require_inputs(inputs)
    known: Unmoved = unmoved or told(lambda x: Unmoved.of(model, x), inputs)
    found: Layers = told(lambda x: Layers.of(model, x, symmetry, hidden, known), inputs)
    floor = max((e.rounding for e in found.errors), default=0.0)
    modules = dict(model.named_modules())
    random = known.random
    broken = next((e for e in found.errors if e.broken), None)
    first = random if random is not None else None if broken is None else broken.layer
    if random is not None:
        cause = f"{type(modules[random]).__name__} is random: put the model in eval mode"
    elif broken is None:
        cause = _wrong_output_action(model, inputs, symmetry)
    elif broken.broken_before:
        cause = cause_between(model, broken.layer, found, inputs)
    elif isinstance(symmetry.input_action, Turn | Zoom) and _interpolated(model, inputs, symmetry):
        cause = (
            f"interpolation: at {broken.kind} and before, the images are too rough to be turned; "
            "with low-passed ones (band_limited) the violation is gone"
        )
    else:
        cause = cause_of(modules[broken.layer], broken.layer, found, symmetry)
    return Culprit(layer=first, cause=cause, layers=found.errors, floor=floor)


def _interpolated(model: nn.Module, inputs: Tree, symmetry: Equivariance) -> bool:
    """Whether the violation goes when the images are low-passed."""
    smooth = on_tensors(lambda x: band_limited(x) if x.is_floating_point() else x, inputs)
    result = equivariance_error(lambda x: call(model, x), smooth, symmetry, check=False)
    return result.verdict != "violated"


def better_output_action(function: Function, inputs: Tree, symmetry: Equivariance) -> str:
    """Name of another output action under which the claim holds; "" when there is none.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.groups.matrices import O3
        >>> x = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> moment = lambda x: torch.linalg.cross(x[:, 0], x[:, 1])
        >>> better_output_action(moment, x, Equivariance(O3(), vectors, vectors))
        'axial_vectors'
    """
    own = symmetry.output_action
    others: dict[str, Action] = {}
    if isinstance(own, Boost):
        others["a boost that carries nothing"] = replace(own, cells=0)
        others["a boost that carries the other way"] = replace(own, cells=-own.cells)
    others |= {
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
        return call(model, x)

    result = equivariance_error(function, inputs, symmetry, check=False)
    if result.verdict == "unresolved" and isinstance(symmetry.input_action, Turn | Zoom):
        return (
            f"interpolation: the action itself is off by {result.floor:.1g} on these images and "
            "hides the model; low-pass them (band_limited), or take an exact action"
        )
    if result.verdict != "violated":
        return ""
    found = better_output_action(function, inputs, symmetry)
    if found:
        return f"wrong output action: it holds for {found}; check R"
    ties = sorted(operations(lambda: call(model, inputs)) & ORDERED)
    hint = f"; it calls {', '.join(ties)}: ties are broken by place" if ties else ""
    return (
        "no single layer: the loss of symmetry lies between layers, or the output action is wrong"
        + hint
    )


def summary(found: Culprit) -> str:
    """One sentence for a record's note.

    Example:
        >>> summary(Culprit(layer=None, cause="", layers=(), floor=0.0))
        ''
    """
    if found.layer is None:
        return found.cause
    return f"first broken at {found.layer}: {found.cause}"
