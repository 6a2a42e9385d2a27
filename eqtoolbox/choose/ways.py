"""Ways to give a network a symmetry, at about as many free weights as it has without."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from eqtoolbox import enforce
from eqtoolbox.choose.augmented import Augmented
from eqtoolbox.choose.fresh import fresh
from eqtoolbox.choose.widening import wider
from eqtoolbox.symmetry.claim import Equivariance

Way = Literal["augmented", "averaged", "canonicalised", "tied"]
MOST = 32  # forwards of an average that is tried
_CALLS: dict[str, str] = {
    "augmented": "eqtoolbox.choose.Augmented(model, claim)",
    "averaged": "eqtoolbox.enforce.averaged(model, claim, sample)",
    "canonicalised": "eqtoolbox.enforce.canonicalised(model, claim, sample=sample)",
}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network with a symmetry."""

    network: nn.Module
    weights: int  # free ones
    call: str  # what builds it of `model`, `claim` and `sample`
    widen: float = 0.0  # factor of hidden widths; 0 where they stay


def build(
    way: Way, model: nn.Module, claim: Equivariance, sample: Any, *, seed: int = 0, widen: float = 0
) -> Built:
    """A model with the symmetry built in by one of the ways.

    Args:
        way: to have it.
        model: with weights of its own; it becomes part of what is built, or gives its shape.
        claim: to obey.
        sample: a few inputs.
        seed: of what is drawn.
        widen: factor of the hidden widths of a tied network; by default such that about as many
            weights are free as without a claim.

    Raises:
        ValueError: it cannot be built; says why.
    """
    order = claim.group.order
    if way != "augmented" and order is None:
        raise ValueError(f"{claim.group.name} has infinitely many elements")
    if order is not None and order > MOST and way != "augmented":
        raise ValueError(f"{claim.group.name} has {order} elements, above {MOST}: too dear to try")
    if way == "tied":
        return _tied(model, claim, sample, seed, widen)
    if way == "augmented":
        network: nn.Module = Augmented(model, claim, seed=seed)
    elif way == "averaged":
        network = enforce.averaged(model, claim, sample)
    else:
        network = enforce.canonicalised(model, claim, sample=sample)
    return Built(network=network, weights=free(network), call=_CALLS[way])


def _tied(model: nn.Module, claim: Equivariance, sample: Any, seed: int, widen: float) -> Built:
    """Tied at a width at which about as many weights are free."""
    order = claim.group.order or 1
    plain = free(model)
    if not widen:
        widen = enforce.tied(wider(model, 1.0, order, sample), claim, sample).widen
        rounded = plain / free(wider(model, 1.0, order, sample))  # widths were rounded up
        widen *= rounded**0.5
    new = fresh(wider(model, widen, order, sample), seed)[0]
    network = enforce.tied(new, claim, sample, copy=False)
    call = f"eqtoolbox.choose.wider(model, {widen:.3g}, {order}, sample)"
    return Built(
        network=network,
        weights=network.weights[1],
        call=f"eqtoolbox.enforce.tied({call}, claim, sample)",
        widen=widen,
    )


def free(network: nn.Module) -> int:
    """Weights that training moves."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
