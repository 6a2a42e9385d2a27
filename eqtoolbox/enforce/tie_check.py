"""What can be tied, and the judgement of what was: the equivariance error at random weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eqtoolbox.enforce.calling import Calling, arguments_of, of_tensors
from eqtoolbox.enforce.enforced import Enforcement
from eqtoolbox.enforce.representation import Unfit
from eqtoolbox.enforce.tying import Ties, apply, few, plan
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import culprit
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree

_JUDGED = 64  # elements at most
_WHOLE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)
_SAMPLES = 3
_ROUNDED = 1e-11  # error of weights that are rounded in float64; a broken law has 1e-3 and more
_DRAWS = 4  # of weights, until units are alive


def planned(work: nn.Module, claim: Equivariance, sample: Tree) -> tuple[Ties, Enforcement]:
    """What a model owes to a claim, and its error before and after, tied at random weights.

    Args:
        work: a copy in float64 and eval mode, which is used up.
        claim: of a finite group.
        sample: as the model is called with.

    Raises:
        ValueError: it cannot be tied, or is not equivariant then.
    """
    calling = Calling(work, claim, *arguments_of(work, sample))
    if calling.parts:
        raise ValueError("cannot be tied: rows of this batch are parts of samples; use averaged")
    try:
        batch = few(calling.tree, _SAMPLES)
    except Exception as error:
        raise ValueError(f"sample must be what the model is called with: {error}") from error

    def respond(x: Tree) -> Tree:
        return calling.on(x).respond(x)

    try:
        with torch.no_grad():
            outputs = respond(batch)
    except Exception as error:
        raise ValueError(f"the model cannot be called on this sample: {error}") from error
    claim.check(batch, outputs)
    compared, picked = of_tensors(claim, outputs)
    samples = min(claim.group.order or 2, _JUDGED)

    def measured() -> EquivarianceResult:
        found: EquivarianceResult = equivariance_error(
            lambda x: picked(respond(x)), batch, compared, samples=samples, check=False
        )
        return found

    before = measured()
    try:
        owed = plan(work, claim, respond, batch)
    except Unfit as why:
        raise ValueError(f"cannot be tied to {claim.name}: {why}") from why
    if not owed.lines:
        raise ValueError(
            "cannot be tied: no linear or convolutional layer is met; use averaged or canonicalised"
        )
    apply(work, owed, range(claim.group.order or 0), refill=False)
    result = _judged(work, owed, measured)
    if result.verdict not in ("holds", "trivial") and not result.relative_error < _ROUNDED:
        found = culprit(work, batch, claim)
        raise ValueError(
            f"cannot be tied to {claim.name}: error {result.relative_error:.2g} is left "
            f"(floor {result.floor:.2g}); first at {found.layer}: {found.cause}"
        )
    if result.verdict == "trivial" and before.verdict != "trivial":
        raise ValueError(
            f"cannot be tied to {claim.name}: outputs are then the same for all inputs, whatever "
            "the weights; take hidden widths of several times the elements of the group"
        )
    return owed, Enforcement(
        method="tied", claim=claim.name, forwards=1, scores=0, before=before, result=result
    )


def demand(model: nn.Module, claim: Equivariance) -> None:
    """A finite group, and a model of weights that can be tied.

    Raises:
        ValueError, TypeError: which is not, by name.
    """
    group = claim.group
    if group.order is None or not group.invertible:
        raise ValueError(
            f"cannot be tied to {group.name}: a finite group is needed; take one inside, such as "
            "Cyclic(n), or use sampled"
        )
    if hasattr(model, "_orig_mod"):
        raise ValueError("cannot be tied: the model is compiled; tie the one inside, then compile")
    for name, module in model.named_modules():
        _demand_plain(name or "the model", module)
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet; call the model on a batch first")
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name} is {p.dtype}: tie in float32 (model.float()) and cast what is exported"
            )


def _demand_plain(name: str, module: nn.Module) -> None:
    """Of a kind that can be followed, with weights of its own."""
    kind = type(module).__name__
    if isinstance(module, _WHOLE):
        raise ValueError(
            f"{name}: {kind} cannot be tied; use averaged or canonicalised, which take any model"
        )
    made = [a for a, x in vars(module).items() if isinstance(x, Tensor) and x.grad_fn is not None]
    if made:
        raise ValueError(
            f"cannot be tied: {name} makes its {made[0]} anew at each call (weight_norm, "
            "spectral_norm); remove that first"
        )
    if parametrize.is_parametrized(module):
        raise ValueError(f"cannot be tied: {name} is parametrised already; remove that first")
    if "quantized" in type(module).__module__:
        raise TypeError(f"{name} is quantised: tie first, quantise what is exported")


def _judged(
    work: nn.Module, owed: Ties, measured: Callable[[], EquivarianceResult]
) -> EquivarianceResult:
    """The equivariance error of the tied model at random weights."""
    for seed in range(_DRAWS):
        _shake(work, owed, torch.Generator().manual_seed(seed))
        result = measured()
        if result.verdict in ("holds", "violated"):
            break
    return result


@torch.no_grad()
def _shake(work: nn.Module, owed: Ties, rng: torch.Generator) -> None:
    """Weights of about unit outputs, small biases."""
    for name, attribute in owed.laws:
        held: Any = work.get_submodule(name).parametrizations
        weight: Tensor = held[attribute].original
        size = (len(weight) / weight.numel()) ** 0.5 if weight.dim() > 1 else 0.1
        weight.copy_(size * torch.randn(weight.shape, generator=rng, dtype=weight.dtype))
