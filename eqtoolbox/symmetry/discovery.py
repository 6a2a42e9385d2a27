"""Discovery: parameter symmetries proposed from what a loss runs, confirmed by numbers."""

from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import ParameterSymmetry, verified
from eqtoolbox.symmetry.recording import record
from eqtoolbox.symmetry.rescale import propose_rescale
from eqtoolbox.symmetry.scale import propose_scale
from eqtoolbox.symmetry.translation import propose_translation

PROPOSALS = (propose_rescale, propose_scale, propose_translation)


def find_symmetries(
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
) -> list[ParameterSymmetry]:
    """Parameter symmetries of `loss` at `params`, each with its verified status and residual.

    One evaluation is recorded, every family proposes from it, and each proposal is checked at a
    finite transformation and to first order (`eqtoolbox.symmetry.parameter.verified`). Give
    float64 parameters and a loss that computes in float64 for the sharpest check.

    Returns:
        All proposals, broken ones included: look at `status` before use.
    """
    generator = generator or torch.Generator().manual_seed(0)
    recording, kept = record(loss, params)
    proposals = chain.from_iterable(propose(recording, params) for propose in PROPOSALS)
    found = [verified(proposal, loss, params, generator) for proposal in proposals]
    del kept
    return found
