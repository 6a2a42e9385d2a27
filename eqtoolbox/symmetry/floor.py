"""The noise floor: the equivariance error that rounding, randomness and the actions make."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.symmetry.actions import inside_of, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.group import Element
from eqtoolbox.symmetry.orbit import Function, distance, require_finite, respond
from eqtoolbox.symmetry.structure import Tree, batch_size, first, on_tensors

RANDOM_NOTE = (
    "function is random: put the model in eval mode, and take out what draws random numbers even "
    "there, such as dropout without training=self.training"
)
_RANDOM = 100.0  # repeat-run noise of a random function, in roundings
_COARSE_NOTE = "operations of lower precision than the outputs set the floor"


def noise(
    function: Function, inputs: Tree, outputs: Tensor, generator: torch.Generator
) -> tuple[float, str]:
    """Relative answer of f to rounding and to repetition on a few samples, and a note on it."""
    samples = batch_size(inputs)
    part = first(inputs, few(samples))
    try:
        base, coarsest = _observe(function, part)
    except (RuntimeError, ValueError, IndexError):  # f holds something as long as the batch
        part = inputs
        base, coarsest = _observe(function, part)
    whole = batch_size(part) == samples  # only then is f(x) comparable: f may be a batch norm
    repeat = distance(base, outputs) if whole else None
    own = torch.finfo(outputs.dtype).eps
    eps = max(own, coarsest)
    answer = distance(respond(function, _nudged(part, generator)), base)
    random_from = min(_RANDOM * eps, 0.05)  # 100 roundings of bfloat16 would be 78 %
    if repeat is None:
        suspect = answer > random_from
        repeat = distance(respond(function, part), base) if suspect else 0.0
    require_finite(torch.tensor([answer, repeat]), "close to f(x)")
    if repeat > random_from:
        return max(answer, repeat), RANDOM_NOTE
    return max(answer, repeat, eps), _COARSE_NOTE if eps > own else ""


def few(samples: int) -> int:
    """How many samples stand for a batch where a rough number will do: a sixteenth, 1 to 8."""
    return max(2 if samples >= 8 else 1, min(8, samples // 16))


def _nudged(inputs: Tree, generator: torch.Generator) -> Tree:
    """x (1 + eps randn) in float64, rounded back; integers and masks stay."""
    device = generator.device

    def nudge(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, device=device).to(torch.float64)
        return (x.to(device, torch.float64) * (1.0 + torch.finfo(x.dtype).eps * noise)).to(x)

    return on_tensors(nudge, inputs)


def _observe(function: Function, inputs: Tree) -> tuple[Tensor, float]:
    with Precision() as precision:
        outputs = respond(function, inputs).clone()
    return outputs, precision.eps


class Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the coarsest rounding among the results of all operations, autocast included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, list | tuple) else (result,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.eps = max(self.eps, torch.finfo(x.dtype).eps)
        return result


def round_trip(
    symmetry: Equivariance, elements: list[Element], inputs: Tree, outputs: Tree
) -> float:
    """Largest |S^-1 S x - x| / |x| of both actions: what interpolation alone does.

    Compared where the action can be, so that an edge lost by a shift is no noise.
    """
    largest = 0.0
    for action, x in ((symmetry.input_action, inputs), (symmetry.output_action, outputs)):
        for g in elements if action is not trivial else ():
            back = inside_of(action, action(symmetry.group.inverse(g), action(g, x)))
            largest = max(largest, distance(back, inside_of(action, x)))
    return largest
