"""The field: the gradient that trains, as a function of the parameters, and its derivative J.

J = J^T where the gradient is that of one function. It is not where a part of the loss is detached
or passes on a gradient that is not its own: stop-gradients, straight-through estimators, surrogate
gradients, power iterations. Exact products are then the second derivative with that part held.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from eqtoolbox.linalg.asymmetry import asymmetry
from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.tape import nodes, operation
from eqtoolbox.linalg.vectors import add, norm
from eqtoolbox.linalg.widened import WidenedOperator
from eqtoolbox.probes.held_parameters import HeldObjective
from eqtoolbox.probes.inside import cuts
from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.operations import opened

Made = TypeVar("Made")

NEAR = 5e-3  # exact against differenced product; differences of smooth float32 losses err by 1e-3
FINE = 5e-4  # the same, in float64, where a part of the loss is known to be cut off
WRONG = 0.03  # the same where float32 differences, whose error is not known, are all there is
SYMMETRIC, NARROW = 1e-5, 0.02  # |J - J^T| / |J| that rounding explains: of float64, of float32
SAME = 1e-3  # of the loss in float64 and in its own precision
NO_DIFFERENCES = (RuntimeError, TypeError, ValueError, NotImplementedError)
_BENT = frozenset({
    "abs", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin", "clamp", "clamp_max",
    "clamp_min", "fractional_max_pool2d", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "kthvalue", "leaky_relu", "max", "max_pool1d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "maximum", "median", "min", "minimum", "prelu_kernel", "relu",
    "rrelu_with_noise", "softshrink", "sort", "threshold", "topk",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An exact product beside the field's own derivative; NaN for what could not be measured."""

    difference: float = math.nan  # |exact product - J v| / |exact product|
    differs: bool = False  # by more than errors of differences explain
    asymmetry: float = math.nan  # |J - J^T| / |J|, measured where they differ
    one_function: bool = True  # whether J is symmetric as far as that was measured
    smooth: bool = False  # differences in the parameters' own precision are right
    why_not: str = ""  # what keeps differences from being compared


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the computation of a loss is made of, as far as second derivatives go."""

    cuts: tuple[str, ...]  # operations by which parts that depend on the parameters are detached
    custom: tuple[str, ...]  # functions that bring a backward of their own
    bent: bool  # whether there are kinks

    @property
    def reason(self) -> str:
        """What makes a part of the loss one that is held, in words."""
        if self.custom:  # whose own forward runs without gradients, which is no cut
            return f"{', '.join(self.custom[:3])} has a backward of its own"
        if self.cuts:
            return f"{' and '.join(self.cuts[:3])} cut it off"
        return "it is detached or has a backward of its own"


def widened(
    objective: Objective | HeldObjective, params: Parameters, stiffness: float | None = None
) -> WidenedOperator:
    """Differences of gradients in float64; `stiffness` as of `FiniteDifference`.

    Raises:
        RuntimeError, TypeError, ValueError: the loss cannot be computed in it, or is another one:
            random numbers of another precision are other numbers.
    """
    with torch.no_grad():
        own = float(objective(params))
    made = WidenedOperator(objective.to(torch.float64), params, stiffness)
    if not abs(own - made.value) <= SAME * abs(own):
        raise ValueError(
            f"the loss is {made.value:.6g} in float64 and {own:.6g} in its own precision"
        )
    return made


def compare(
    objective: Objective | HeldObjective,
    params: Parameters,
    along: Parameters,
    exact: Parameters,
    *,
    doubt: bool,
    made: "Structure",
) -> Comparison:
    """How far an exact product is from the derivative of the gradient that trains.

    Differences in float32 are asked first, and believed where they agree. A kink inside of one, or
    thousands of them, are no reason to call exact products wrong: where there may be one,
    differences in float64 are asked, whose steps are a thousandth, and asked first where the loss
    has kinks.

    Args:
        objective, params: the loss and where it is differentiated.
        along: the direction v.
        exact: its exact product.
        doubt: whether exact products are wrong anyway.
        made: of the loss.
    """

    def apart(product: Parameters) -> float:
        return norm(add(exact, product, -1.0)) / max(norm(exact), 1e-300)

    def agrees(product: Parameters) -> bool:
        return not doubt and apart(product) <= limit

    def differences() -> FiniteDifference:
        return FiniteDifference(objective, params, stiffness=stiffness)

    def in_float64() -> WidenedOperator:
        return widened(objective, params, stiffness)

    stiffness = norm(exact) / max(norm(along), 1e-300) or None
    limit = FINE if made.cuts and not made.custom else NEAR
    narrow = None if made.bent else _tried(differences)
    own = _tried(partial(narrow, along)) if narrow else None
    if own is not None and agrees(own):
        return Comparison(difference=apart(own), smooth=True)
    wide = _tried(in_float64)
    fine = _tried(partial(wide, along)) if wide else None
    if wide and fine and not agrees(fine):  # where the gradient jumps it is no judge
        fine = _tried(partial(wide.steady, along))
    if wide and fine:
        smooth = own is not None and norm(add(own, fine, -1.0)) <= WRONG * norm(fine)
        return _judged(wide, apart(fine), (limit, NEAR), SYMMETRIC, doubt, smooth)
    if made.bent:
        bent = _tried(differences)
        own = _tried(partial(bent, along)) if bent else None
        if own is not None and agrees(own):
            return Comparison(difference=apart(own))
    if not narrow or not own:
        return Comparison(why_not="kinks")
    return _judged(narrow, apart(own), (WRONG, WRONG), NARROW, doubt, True)


def _judged(
    field: FiniteDifference | WidenedOperator,
    difference: float,
    limits: tuple[float, float],
    symmetric: float,
    doubt: bool,
    smooth: bool,
) -> Comparison:
    """Where it may differ, J is asked; beyond the second limit it differs whatever J is."""
    gap = math.nan
    if difference > limits[0] or doubt:
        try:
            gap = asymmetry(field, torch.Generator().manual_seed(1))
        except ValueError:  # a kink along another direction
            gap = math.nan
    return Comparison(
        difference=difference,
        differs=difference > limits[1] or (difference > limits[0] and gap > symmetric),
        asymmetry=gap,
        one_function=not gap > symmetric,
        smooth=smooth,
    )


def _tried(make: Callable[[], Made]) -> Made | None:
    """Differences, or a product of theirs; None where there are none."""
    try:
        return make()
    except NO_DIFFERENCES:
        return None


def structure(objective: Objective, params: Parameters) -> Structure:
    """Runs the loss once and looks at the tape."""
    at = {n: leaf(p.detach()) for n, p in params.items()}
    with torch.enable_grad(), objective.scope(at), _Cuts() as cuts:
        tape = nodes([objective.loss(at)])
    custom = (type(node).__name__ for node in tape if isinstance(node, BackwardCFunction))
    return Structure(
        cuts=tuple(dict.fromkeys(cuts.seen)),
        custom=tuple(dict.fromkeys(name.removesuffix("Backward") for name in custom)),
        bent=any(operation(node) in _BENT for node in tape),
    )


class _Cuts(TorchFunctionMode):
    """Notes by what values that depend on the parameters are cut off from them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", func))
        owner = str(getattr(getattr(func, "__self__", None), "__name__", ""))
        if name in ("detach", "detach_") or (name, owner) == ("__get__", "data"):
            cut = "data" if name == "__get__" else name
        elif cuts(func, args, kwargs or {}):
            cut = f"autograd.{name}"
        elif func in (F.embedding, F.embedding_bag) and (kwargs or {}).get("max_norm") is not None:
            cut = "max_norm"  # which writes to the table and is not differentiated
        else:
            cut = "" if torch.is_grad_enabled() or name == "__get__" else "no_grad"
        if cut and any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(args)):
            self.seen.append(cut)
        if func is F.gumbel_softmax:  # the one function of torch's own that cuts inside
            with self:
                return opened(func)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
