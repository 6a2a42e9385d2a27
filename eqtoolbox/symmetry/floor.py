"""The noise floor: the equivariance error that rounding, randomness and the actions make."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from eqtoolbox.linalg.precision import Precision
from eqtoolbox.symmetry.actions.action import inside_of, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.orbit import Function, distance, furthest, require_finite, respond
from eqtoolbox.symmetry.structure import Tree, batch_size, first, on_tensors

RANDOM_NOTE = (
    "function is random: put the model in eval mode, and take out what draws random numbers even "
    "there, such as dropout without training=self.training"
)
_RANDOM = 100.0  # repeat-run noise of a random function, in roundings
_COARSE_NOTE = "operations of lower precision than the outputs set the floor"


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How f answers what should change nothing, and what was seen of it on the way."""

    answer: float  # relative, at least the rounding
    note: str
    alone: bool = False  # whether a few samples are answered as they are among all
    numbers: int = 0  # in all results of operations, for one sample


def noise(function: Function, inputs: Tree, outputs: Tensor, generator: torch.Generator) -> Noise:
    """Relative answer of f to rounding and to repetition on a few samples, and a note on it.

    One run sees both: its inputs are off by a rounding, every operation rounds once more by chance
    (so that a solver of a thousand steps is not judged by its first), and it is another run than
    the one that made `outputs`. Only a large answer costs two more, which tell the two apart.
    """
    samples = batch_size(inputs)
    rows = few(samples)
    try:
        near, seen = _rounded(function, first(inputs, rows), generator)
    except (RuntimeError, ValueError, IndexError):  # f holds something as long as the batch
        rows = samples
        near, seen = _rounded(function, inputs, generator)
    own = torch.finfo(outputs.dtype).eps
    eps = max(own, seen.eps)
    answer, repeat = distance(near, outputs[:rows]), 0.0
    random_from = noisy(eps)
    alone = rows < samples and answer <= random_from
    if not answer <= random_from:  # NaN too; or f sees the batch as a whole
        base, again = (respond(function, first(inputs, rows)).clone() for _ in range(2))
        answer, repeat = distance(near, base), distance(again, base)
    require_finite(torch.tensor([answer, repeat]), "close to f(x)")
    if repeat > random_from:
        return Noise(answer=max(answer, repeat), note=RANDOM_NOTE)
    return Noise(
        answer=max(answer, repeat, eps),
        note=_COARSE_NOTE if eps > own else "",
        alone=alone,
        numbers=seen.numbers // rows,
    )


def noisy(eps: float) -> float:
    """Relative change of a second run that rounding does not explain."""
    return min(_RANDOM * eps, 0.05)  # 100 roundings of bfloat16 would be 78 %


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


def _rounded(
    function: Function, inputs: Tree, generator: torch.Generator
) -> tuple[Tensor, "Rounding"]:
    """f near x, its operations rounded by chance, and what was seen of them."""
    near = _nudged(inputs, generator)
    if forward_ad._current_level >= 0:  # of a loss that asks for this: torch crashes with a mode
        return respond(function, near).clone(), Rounding(generator)
    with Rounding(generator) as rounding:
        outputs = respond(function, near).clone()
    return outputs, rounding


class Rounding(Precision):  # type: ignore[no-untyped-call]
    """Moves results of operations by up to half a rounding, by chance.

    Whole numbers (counts, masks) and what is only moved about are exact and stay.

    Reference: Monte Carlo arithmetic, Parker 1997.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.numbers = 0  # in all results

    def seen(self, func: Any, x: Any) -> Any:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        if x.numel() == 0 or func.overloadpacket.__name__ in _EXACT or _aliased(func):
            return x
        self.numbers += x.numel()
        device = self.generator.device
        share = torch.rand(x.shape, generator=self.generator, device=device).to(x.device) - 0.5
        near = x + x * (torch.finfo(x.dtype).eps * share).to(x.real.dtype)
        return near if x.is_complex() else torch.where(x == x.round(), x, near)


_EXACT = frozenset({
    "_to_copy", "abs", "cat", "clone", "constant_pad_nd", "copy", "flip", "gather", "index",
    "index_select", "masked_fill", "max", "max_pool1d", "max_pool2d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "min", "neg", "relu", "repeat", "roll", "scatter", "sort", "stack",
    "topk", "where",
})  # fmt: skip


def _aliased(func: Any) -> bool:
    """Whether an operation returns a view, or writes into what it was given."""
    return any(x.alias_info is not None for x in func._schema.returns)


def round_trip(
    symmetry: Equivariance, elements: list[Element], inputs: Tree, outputs: Tree
) -> float:
    """Largest |S^-1 S x - x| / |x| of both actions: what interpolation alone does.

    Compared where the action can be, so that an edge lost by a shift is no noise.
    """
    largest, inverses = 0.0, [symmetry.group.inverse(g) for g in elements]
    for action, x in ((symmetry.input_action, inputs), (symmetry.output_action, outputs)):
        if action is not trivial:
            pairs = zip(elements, inverses, strict=True)
            back = [inside_of(action, action(inverse, action(g, x))) for g, inverse in pairs]
            largest = max(largest, furthest(back, inside_of(action, x)))
    return largest
