"""A wider network of the same kind: hidden layers scaled, inputs and outputs as they were."""

import copy
import math
from typing import Any

import torch
from torch import nn

from eqtoolbox.choose.augmented import Network
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Positive
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.reading import Reading, opened
from eqtoolbox.symmetry.structure import tensors

_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


@checked
def wider(model: Network, factor: Positive, multiple: Count, sample: Any) -> nn.Module:
    """The network with hidden layers about `factor` times as wide, at weights of its own.

    Layers are scaled in the order in which they run: the first with weights keeps its inputs, the
    last its outputs. It must then still answer in the same shapes.

    Args:
        model: of linear, convolutional and normalising layers in a row, or with additions between
            layers of one width.
        factor: of all hidden widths, rounded up to whole multiples of `multiple`.
        multiple: such as the order of a group whose regular representations must fit.
        sample: inputs to run it on; a tuple holds its arguments, a dict may by their names.

    Raises:
        ValueError: it has other layers with weights, or does not run when widened.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> wide = wider(net, 2.0, 4, torch.ones(1, 3))
        >>> wide[0].out_features, wide[2].in_features, wide[2].out_features
        (12, 12, 2)
    """
    new = copy.deepcopy(model).eval()
    ran, shapes = _order(new, sample)
    names = {module: name for name, module in new.named_modules()}
    dense = [m for m in ran if isinstance(m, _DENSE)]
    if len(dense) < 2:
        raise ValueError("it has no hidden layer to widen")
    last, ratio = dense[-1], (1, 1)  # new features over old
    for layer in ran:
        if isinstance(layer, _DENSE):
            given = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            made = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            wide = made if layer is last else multiple * math.ceil(factor * made / multiple)
            replaced: nn.Module = _dense(layer, _whole(given, ratio), wide)
            ratio = (wide, made)
        elif isinstance(layer, nn.LayerNorm):
            if len(layer.normalized_shape) > 1:
                raise ValueError("it normalises over several dimensions at once")
            replaced = nn.LayerNorm(_whole(layer.normalized_shape[0], ratio), layer.eps)
        else:
            features = _whole(layer.num_features, ratio)
            replaced = type(layer)(features, layer.eps, layer.momentum, layer.affine)
        new.set_submodule(names[layer], _placed(replaced, layer))
    try:
        now = _answers(new, sample)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"it does not run when its hidden layers are widened ({error})") from error
    if now != shapes:
        raise ValueError("widening its hidden layers changes the shape of its outputs")
    return new.train(model.training)


def _order(model: nn.Module, sample: Any) -> tuple[list[Any], Any]:
    """Layers with weights, each once, in the order of execution; and the shapes of the outputs."""
    ran: list[Any] = []
    own = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    odd = [type(m).__name__ for m in own if type(m) not in (*_DENSE, *_NORMS)]
    odd += [type(m).__name__ for m in own if getattr(m, "groups", 1) != 1]
    if odd:
        raise ValueError(f"{odd[0]} is no plain layer that could be widened")
    once = lambda m, *_: ran.append(m) if m not in ran else None
    handles = [m.register_forward_hook(once) for m in own]
    try:
        shapes = _answers(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    if len(ran) < len(own):
        raise ValueError("some of its layers do not run")
    return ran, shapes


def _answers(model: nn.Module, sample: Any) -> list[torch.Size]:
    """The shapes of what it returns."""
    try:
        with torch.no_grad():
            return [x.shape for x in tensors(valued(Reading(model, sample), opened(sample)))]
    except Exception as error:
        raise ValueError(f"the model cannot be called on this sample: {error}") from error


def _whole(size: int, ratio: tuple[int, int]) -> int:
    if size * ratio[0] % ratio[1]:
        raise ValueError(f"{size} features do not come from {ratio[1]} before them")
    return size * ratio[0] // ratio[1]


def _dense(layer: Any, given: int, made: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(given, made, bias)
    return type(layer)(  # type: ignore[no-any-return]
        given, made, layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1, bias,
        layer.padding_mode,
    )  # fmt: skip


def _placed(layer: nn.Module, like: nn.Module) -> nn.Module:
    weight = next(like.parameters())
    return layer.to(weight.device, weight.dtype)
