"""Equivariance f(S_g x) = R_g f(x): the claim, and how far a function is from it.

Every sum is in float64 over deviations from f(x), so that a small violation survives a large f.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.symmetry.actions import Action, check_action, trivial
from eqtoolbox.symmetry.group import Element, Group

Verdict = Literal["holds", "violated", "unresolved"]
Function = Callable[[Tensor], Tensor]

_HOLDS, _VIOLATED = 3.0, 10.0  # verdict thresholds, in floors
_UNRELATED = math.sqrt(2.0)  # relative error of a function that knows nothing of the group
_RANDOM = 100.0  # repeat-run noise of a random function, in roundings
_RANDOM_NOTE = "function is random: put the model in eval mode"
_COARSE_NOTE = "operations of lower precision than the outputs set the floor"


@dataclass(frozen=True)
class Equivariance:
    """The claim that a function obeys f(S_g x) = R_g f(x) for every g of a group.

    Args:
        group: the elements g.
        input_action: S, a function `(g, x) -> gx`.
        output_action: R, likewise on outputs; `trivial` claims invariance.
        name: for records, letters of [A-Za-z0-9_.-]; the group's name unless given.
        tolerance: relative defect up to which `check` accepts the laws of an action; derived from
            the dtype unless given, which suits every action that does not interpolate.

    Raises:
        TypeError: the group is no Group, or an action cannot be called.
        ValueError: the group is trivial, the name has other letters, the tolerance is negative.

    Example:
        >>> from eqtoolbox.symmetry.actions import quarter_turn
        >>> from eqtoolbox.symmetry.group import Cyclic
        >>> Equivariance(Cyclic(4), quarter_turn, trivial).name
        'cyclic4'
    """

    group: Group
    input_action: Action
    output_action: Action
    name: str = field(default="", kw_only=True)
    tolerance: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise TypeError(f"group must be a Group such as Cyclic(4), got {self.group!r}")
        for side, action in (("input", self.input_action), ("output", self.output_action)):
            if not callable(action):
                raise TypeError(f"{side}_action must be a function (g, x) -> gx, got {action!r}")
        if self.group.order == 1:
            raise ValueError(
                f"{self.group.name} has only the identity: nothing to be equivariant to"
            )
        object.__setattr__(self, "name", self.name or self.group.name)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"name must be letters of [A-Za-z0-9_.-], got {self.name!r}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0 or None, got {self.tolerance}")

    def check(self, inputs: Tensor, outputs: Tensor) -> None:
        """Verify on examples that both actions are actions of the group and fit their tensors.

        Args:
            inputs: (batch, ...), at least one sample; the first two are used.
            outputs: (batch, ...), likewise.

        Raises:
            ValueError: which action breaks which law of `check_action`, where, by how much.
        """
        for name, x in (("input_action", inputs), ("output_action", outputs)):
            action = self.input_action if name == "input_action" else self.output_action
            check_action(self.group, action, x[:2].detach(), name=name, tolerance=self.tolerance)


@dataclass(frozen=True, kw_only=True)
class EquivarianceResult:
    """How far a function is from equivariance; read the numbers together, each alone misleads."""

    relative_error: float  # [0, inf], 0 holds, sqrt(2) unrelated; NaN: all outputs are zero
    stderr: float  # of relative_error over group samples; 0 when enumerated, NaN for one sample
    worst: float  # largest relative error of one element used
    worst_element: Element  # the element of `worst`
    orbit_variance: float  # [0, 1], 0 invariant, 1 noise of g; NaN: cannot be said
    orbit_variance_floor: float  # what rounding alone makes of it; NaN as above
    floor: float  # relative error that rounding, noise and the actions alone produce
    verdict: Verdict  # of relative_error against the floor
    samples: int  # non-identity elements used
    enumerated: bool  # True: these are all of them
    percent_of_loss: float | None = None  # %, None without a loss; NaN when the loss is zero
    note: str = ""  # what to mend before the numbers can be trusted


@torch.no_grad()
def equivariance_error(
    function: Function,
    inputs: Tensor,
    symmetry: Equivariance,
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    check: bool = True,
) -> EquivarianceResult:
    """Relative violation of f(S_g x) = R_g f(x), its share of the output variance, and a verdict.

        relative_error = sqrt(E |f(S_g x) - R_g f(x)|^2 / E |R_g f(x)|^2)     over g != e and x
        orbit_variance = E_x Var_g f_g / Var_{x,g} f_g,   f_g(x) = R_g^-1 f(S_g x),  over all g, x
        percent_of_loss = 100 (E_g l(f_g) - l(E_g f_g)) / E_g l(f_g)    over e and the elements used

    Elements: all of G but e when there are at most `samples` of them, otherwise `samples`
    independent uniform ones. Then the standard error is that of the delta method, orbit_variance
    is a ratio of unbiased estimates, percent_of_loss is low by about 1 / (samples + 1) of itself.

    floor: the largest of (1) the answer |f(x (1 + eps randn)) - f(x)| / |f(x)| to a change of x by
    its rounding, eps being that of the inputs' dtype; (2) the difference of two runs on the same x;
    (3) the round trips |S^-1 S x - x| / |x| and the same of R; (4) eps of the coarsest dtype among
    the outputs and the operations inside, so that autocast is seen (TF32 is not: switch it off).
    The first two come from the first few samples: one run sees both, and the run that tells them
    apart is made only when the answer is large.

    verdict: `holds` up to 3 floors, `violated` above 10, else `unresolved` (rerun in float64).
    Never `holds` when the function is random, nor when the floor is so high (0.14) that not even an
    unrelated function, with its error of sqrt(2), would be called violated. Scaling f changes none.

    Cost: at most `samples` + 3 forwards, without gradients; two of them on a few samples.

    Args:
        function: f, (batch, ...) -> (batch, ...), deterministic; it gets copies of the inputs.
        inputs: x, (batch, ...), floating point.
        symmetry: the claim.
        samples: group elements at most, >= 1.
        generator: draws elements and perturbations; a new one with seed 0 unless given.
        loss: convex and >= 0, outputs -> one number, with the targets of `inputs` inside.
        check: verify the actions first; switch it off where the same shapes passed before.

    Raises:
        TypeError: inputs or outputs are not floating-point tensors.
        ValueError: empty batch, samples < 1, outputs of another batch size, a wrong action.
        FloatingPointError: outputs are not finite.

    Reference: the laws in Yang & Ziyin 2025, arXiv 2512.21447; percent of loss in arXiv 2512.02303.

    Example:
        >>> from eqtoolbox.symmetry.actions import quarter_turn
        >>> from eqtoolbox.symmetry.group import Cyclic
        >>> x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> turn = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> equivariance_error(lambda x: x.abs().sum((1, 2, 3))[:, None], x, turn).verdict
        'holds'
        >>> equivariance_error(lambda x: x[:, 0, 0], x, turn).verdict
        'violated'
    """
    _require_inputs(inputs)
    if samples < 1:
        raise ValueError(
            f"samples must be >= 1, got {samples}; leave the probe out to measure none"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    inputs = inputs.detach()
    outputs = _respond(function, inputs).clone()  # f may reuse its buffer
    _require_finite(outputs, "from f(x)")
    if check:
        symmetry.check(inputs, outputs)
    elements, enumerated = _draw(symmetry.group, samples, generator)
    moments = _OrbitMoments(outputs, symmetry.group.order, enumerated)
    losses = [] if loss is None else [_value(loss, outputs)]
    squares, energies = [], []
    for g, response, pulled in _orbit(function, inputs, symmetry, elements):
        expected = _act(symmetry.output_action, g, outputs, like=response)
        moments.add(pulled)
        if pulled is response and expected is outputs:  # trivial: the same difference
            squares.append(moments.squares[-1])
            energies.append(moments.energy)
        else:
            right = _double(expected)
            squares.append(_square(_double(response) - right))
            energies.append(_square(right))
        if loss is not None:
            losses.append(_value(loss, pulled))
    noise, note = _noise(function, inputs, outputs, generator)
    floor = max(noise, _round_trip(symmetry, elements, inputs[:2], outputs[:2]))
    _require_finite(torch.stack(squares), "from f(S_g x)")
    error, stderr, errors = _ratio(squares, energies, enumerated)
    worst = max(range(len(elements)), key=lambda i: errors[i])
    fraction, fraction_floor = moments.fraction(floor)
    verdict, note = _verdict(error, floor, note)
    return EquivarianceResult(
        relative_error=error,
        stderr=stderr,
        worst=errors[worst],
        worst_element=elements[worst],
        orbit_variance=fraction,
        orbit_variance_floor=fraction_floor,
        floor=floor,
        verdict=verdict,
        samples=len(elements),
        enumerated=enumerated,
        percent_of_loss=None
        if loss is None
        else _gap(losses, _value(loss, moments.twirl(outputs))),
        note=note,
    )


def pulled_back(
    function: Function, inputs: Tensor, symmetry: Equivariance, elements: Iterable[Element]
) -> Tensor:
    """Predictions f_g(x) = R_g^-1 f(S_g x), all equal to f(x) exactly when f is equivariant.

    Gradients flow when they are enabled.

    Args:
        function: f, (batch, ...) -> (batch, ...).
        inputs: x, (batch, ...), floating point.
        symmetry: the claim.
        elements: K elements of its group, K >= 1.

    Returns:
        (K, batch, ...), in the order of the elements.

    Raises:
        TypeError, ValueError, FloatingPointError: as in `equivariance_error`; no elements.

    Example:
        >>> from eqtoolbox.symmetry.actions import flip
        >>> from eqtoolbox.symmetry.group import Flip
        >>> claim = Equivariance(Flip(), flip, flip)
        >>> x = torch.ones(2, 1, 3, 3)
        >>> pulled_back(torch.sin, x, claim, claim.group.elements()).shape
        torch.Size([2, 2, 1, 3, 3])
    """
    _require_inputs(inputs)
    pulled = [fg.clone() for _, _, fg in _orbit(function, inputs, symmetry, elements)]
    if not pulled:
        raise ValueError("elements must hold at least one group element, got none")
    orbit = torch.stack(pulled)
    _require_finite(orbit, "on the orbit of x")
    return orbit


@torch.no_grad()
def percent_of_loss(pulled: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """What the violation of a symmetry costs, in percent of the loss averaged over the orbit.

        100 (E_g l(f_g) - l(E_g f_g)) / E_g l(f_g)

    For a convex loss the gap is >= 0 (Jensen); for the mean squared error it is exactly the
    variance over the orbit, E_g|f_g - y|^2 = |E_g f_g - y|^2 + E_g|f_g - E_g f_g|^2. It
    assumes that x and S_g x are equally likely and that the loss does not prefer one of them.

    Args:
        pulled: (K, batch, ...), the identity among the K elements; see `pulled_back`.
        loss: convex and >= 0, (batch, ...) -> one number.

    Returns:
        Percent in [0, 100]; NaN when the mean loss is not a positive number.

    Raises:
        ValueError: no predictions, or the loss returns more than one number.

    Example:
        >>> pulled = torch.tensor([[[1.0]], [[-1.0]]])
        >>> percent_of_loss(pulled, lambda y: y.square().mean())
        100.0
    """
    if pulled.dim() < 2 or len(pulled) == 0:
        raise ValueError(f"pulled must be (K, batch, ...) with K >= 1, got {tuple(pulled.shape)}")
    twirl = pulled.to(_wide(pulled), torch.float64).mean(dim=0).to(pulled)
    return _gap([_value(loss, prediction) for prediction in pulled], _value(loss, twirl))


class _OrbitMoments:
    """Running sums of f_g over the group, about f_e, so that the orbit itself is never stored."""

    def __init__(self, outputs: Tensor, order: int | None, enumerated: bool) -> None:
        self.base = _double(outputs)  # f_e, (batch, features)
        self.energy = _square(self.base)  # |f_e|^2
        self.share = 0.0 if order is None else 1.0 / order  # weight of e in the group
        self.enumerated = enumerated
        self.shift = torch.zeros_like(self.base)  # sum over g of f_g - f_e
        self.squares: list[Tensor] = []  # |f_g - f_e|^2
        self.means: list[Tensor] = []  # mean over x of f_g - f_e, (features,), when g is drawn

    def add(self, pulled: Tensor) -> None:
        deviation = _double(pulled) - self.base
        self.shift += deviation
        self.squares.append(_square(deviation))
        if not self.enumerated:
            self.means.append(deviation.mean(dim=0))

    def twirl(self, outputs: Tensor) -> Tensor:
        """Mean of f_g over e and the elements added, as `outputs`."""
        mean = self.base + self.shift / (len(self.squares) + 1)
        return mean.reshape(outputs.shape).to(outputs)

    def fraction(self, floor: float) -> tuple[float, float]:
        """E_x Var_g f_g / Var_{x,g} f_g over the whole group, and what rounding makes of it."""
        count, batch = len(self.squares), len(self.base)
        if batch < 2 or (count < 2 and not self.enumerated):
            return math.nan, math.nan
        others, shift = 1.0 - self.share, self.shift / count
        square = torch.stack(self.squares).mean() / batch  # E |f_g - f_e|^2 over g != e
        variance = square - _square(shift) / batch  # E_x Var_g f_g over g != e
        centre = _square(shift.mean(dim=0))  # |E_x,g f_g - E_x f_e|^2 over g != e
        if not self.enumerated:  # both become unbiased
            variance = variance * count / (count - 1)
            centre = centre - torch.stack(self.means).var(dim=0).sum() / count
        centred = self.base - self.base.mean(dim=0)
        spread = (centred.square() + 2.0 * others * centred * shift).sum() / batch
        total = float(spread + others * square - others**2 * centre)
        within = float(others**2 * variance + self.share * others * square)
        rounding = floor**2 * float(self.energy) / batch
        if not total > _HOLDS**2 * rounding:
            return math.nan, math.nan
        return within / total, rounding / total


def _orbit(
    function: Function, inputs: Tensor, symmetry: Equivariance, elements: Iterable[Element]
) -> Iterator[tuple[Element, Tensor, Tensor]]:
    """Yields g, f(S_g x) and f_g(x) = R_g^-1 f(S_g x)."""
    for g in elements:
        response = _respond(function, symmetry.input_action(g, inputs))
        yield g, response, symmetry.output_action(symmetry.group.inverse(g), response)


def _respond(function: Function, inputs: Tensor) -> Tensor:
    outputs = function(inputs.clone())  # f may write into it
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"function must return one tensor, got {type(outputs).__name__}; "
            "wrap it to pick one, as in lambda x: model(x).logits"
        )
    if not outputs.is_floating_point():
        raise TypeError(
            f"outputs must be floating point, got {outputs.dtype}; take logits, not classes"
        )
    if outputs.dim() == 0 or len(outputs) != len(inputs) or outputs.numel() == 0:
        raise ValueError(
            f"outputs must start with the batch size {len(inputs)} of the inputs, "
            f"got shape {tuple(outputs.shape)}; return one output per sample"
        )
    return outputs


def _require_finite(outputs: Tensor, where: str) -> None:
    if not torch.isfinite(outputs).all():
        raise FloatingPointError(
            f"outputs must be finite, got NaN or infinity {where}; measure before training diverges"
        )


def _act(action: Action, g: Element, outputs: Tensor, *, like: Tensor) -> Tensor:
    moved = action(g, outputs)
    if moved.shape != like.shape:
        raise ValueError(
            f"R_g f(x) at {g!r} has shape {tuple(moved.shape)}, but f(S_g x) has "
            f"{tuple(like.shape)}; choose an output action that fits the outputs"
        )
    return moved


def _draw(group: Group, samples: int, generator: torch.Generator) -> tuple[list[Element], bool]:
    """Elements other than the identity, and whether these are all."""
    if group.order is not None and group.order - 1 <= samples:
        return [g for g in group.elements() if g != group.identity], True
    drawn: list[Element] = []
    while len(drawn) < samples:
        drawn += [g for g in group.sample(samples, generator) if g != group.identity]
    return drawn[:samples], False


def _noise(
    function: Function, inputs: Tensor, outputs: Tensor, generator: torch.Generator
) -> tuple[float, str]:
    """Relative answer of f to rounding and to repetition on a few samples, and a note on it."""
    part = inputs[: max(2, min(8, len(inputs) // 16))]
    try:
        base, coarsest = _observe(function, part)
    except (RuntimeError, ValueError, IndexError):  # f holds something as long as the batch
        part = inputs
        base, coarsest = _observe(function, part)
    whole = len(part) == len(inputs)  # only then is f(x) comparable: f may be a batch norm
    repeat = _distance(base, outputs) if whole else None
    own = torch.finfo(outputs.dtype).eps
    eps = max(own, coarsest)
    device = generator.device
    noise = torch.randn(part.shape, generator=generator, device=device).to(torch.float64)
    nudged = part.to(device, torch.float64) * (1.0 + torch.finfo(part.dtype).eps * noise)
    answer = _distance(_respond(function, nudged.to(part)), base)
    random_from = min(_RANDOM * eps, 0.05)  # 100 roundings of bfloat16 would be 78 %
    if repeat is None:
        suspect = answer > random_from
        repeat = _distance(_respond(function, part), base) if suspect else 0.0
    _require_finite(torch.tensor([answer, repeat]), "close to f(x)")
    if repeat > random_from:
        return max(answer, repeat), _RANDOM_NOTE
    return max(answer, repeat, eps), _COARSE_NOTE if eps > own else ""


def _observe(function: Function, inputs: Tensor) -> tuple[Tensor, float]:
    with _Precision() as precision:
        outputs = _respond(function, inputs).clone()
    return outputs, precision.eps


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


def _round_trip(
    symmetry: Equivariance, elements: list[Element], inputs: Tensor, outputs: Tensor
) -> float:
    """Largest |S^-1 S x - x| / |x| of both actions: what interpolation alone does."""
    largest = 0.0
    for action, x in ((symmetry.input_action, inputs), (symmetry.output_action, outputs)):
        for g in elements if action is not trivial else ():
            back = action(symmetry.group.inverse(g), action(g, x))
            largest = max(largest, 0.0 if torch.equal(back, x) else _distance(back, x))
    return largest


def _ratio(
    squares: list[Tensor], energies: list[Tensor], enumerated: bool
) -> tuple[float, float, list[float]]:
    """sqrt(sum of squares / sum of energies), its standard error, and the same for each element."""
    above, below = torch.stack(squares), torch.stack(energies)
    each = (above / below).sqrt().tolist()  # 0 / 0 is NaN
    count, scale = len(squares), float(below.mean())
    square = float(above.mean() / below.mean())
    error = math.sqrt(square)
    if enumerated or error == 0.0:
        return error, 0.0, each
    if count == 1 or not math.isfinite(error):
        return error, math.nan, each
    residual = float((above - square * below).square().sum()) / (count - 1)
    return error, math.sqrt(residual / count) / (2.0 * error * scale), each


def _verdict(error: float, floor: float, note: str) -> tuple[Verdict, str]:
    if math.isnan(error):
        return "unresolved", note or "all outputs are zero: nothing to compare"
    if error > _VIOLATED * floor:
        return "violated", note
    if _VIOLATED * floor >= _UNRELATED:
        return "unresolved", note or "the floor hides any violation: use float64, an exact action"
    trusted = error <= _HOLDS * floor and note != _RANDOM_NOTE
    return "holds" if trusted else "unresolved", note


def _gap(losses: list[float], of_twirl: float) -> float:
    mean = math.fsum(losses) / len(losses)
    return 100.0 * (mean - of_twirl) / mean if 0.0 < mean < math.inf else math.nan


def _value(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> float:
    value = torch.as_tensor(loss(outputs)).detach()
    if value.numel() != 1:
        raise ValueError(f"loss must return one number, got shape {tuple(value.shape)}; reduce it")
    return float(value)


def _require_inputs(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be one tensor, got {type(inputs).__name__}")
    if not inputs.is_floating_point():
        raise TypeError(
            f"inputs must be floating point, got {inputs.dtype}; convert images by "
            "x.float() / 255, or let the function start after the embedding"
        )
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {tuple(inputs.shape)}")


def _wide(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # mps has no float64


def _double(x: Tensor) -> Tensor:
    """(batch, features) in float64."""
    return x.detach().reshape(len(x), -1).to(_wide(x), torch.float64)


def _square(x: Tensor) -> Tensor:
    return torch.dot(x.flatten(), x.flatten())


def _distance(left: Tensor, right: Tensor) -> float:
    """|left - right| / |right|; 0 where right vanishes, which sets no scale."""
    right = _double(right)
    gap, size = float((_double(left) - right).norm()), float(right.norm())
    return gap / size if size > 0 else 0.0
