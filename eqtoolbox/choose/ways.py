"""Ways to give a network a symmetry, at about as many free weights as it has without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from eqtoolbox import enforce
from eqtoolbox.choose.augmented import Augmented
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.structure import Tree

Way = Literal["augmented", "averaged", "canonicalised", "tied"]
MOST = 32  # forwards of an average that is tried
CALLS: dict[str, str] = {
    "augmented": "eqtoolbox.choose.Augmented(model, claim)",
    "averaged": "eqtoolbox.enforce.averaged(model, claim, sample)",
    "canonicalised": "eqtoolbox.enforce.canonicalised(model, claim, sample=sample)",
    "tied": "eqtoolbox.enforce.tied(wider, claim, sample)",
}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network with a symmetry."""

    network: nn.Module
    weights: int  # free ones
    call: str  # what builds it of `model`, `claim` and `sample`


def build(
    way: Way,
    model: nn.Module,
    claim: Equivariance,
    sample: Any,
    answer: Callable[[nn.Module], Tree],
    seed: int = 0,
) -> Built:
    """A model with the symmetry built in by one of the ways.

    Raises:
        ValueError: it cannot be; says why.
    """
    order = claim.group.order
    if way != "augmented" and order is None:
        raise ValueError(f"{claim.group.name} has infinitely many elements")
    if way in ("averaged", "canonicalised") and order is not None and order > MOST:
        raise ValueError(f"{order} forwards a call")
    if way == "tied":
        return _tied(model, claim, sample, answer)
    if way == "augmented":
        network: nn.Module = Augmented(model, claim, seed=seed)
    elif way == "averaged":
        network = enforce.averaged(model, claim, sample)
    else:
        network = enforce.canonicalised(model, claim, sample=sample)
    return Built(network=network, weights=free(network), call=CALLS[way])


def free(network: nn.Module) -> int:
    """Weights that training moves."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _tied(model: nn.Module, claim: Equivariance, sample: Any, answer: Any) -> Built:
    raise ValueError("tied is not there yet")
