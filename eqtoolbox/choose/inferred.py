"""Claims that are not guessed from shapes but inferred: the algebra of what a network learned."""

from torch import Tensor, nn

from eqtoolbox.choose.fresh import fresh
from eqtoolbox.choose.learning import Learning
from eqtoolbox.symmetry.algebra import discover_data
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.spanned import found_claim, found_turns

_WIDEST = 16  # coordinates that are turned
_LONGER = 10  # times the steps: an algebra is read off derivatives, which are learned late
_LEARNED = {"relative error": -0.3, "accuracy": 0.8}  # of the samples, from which on it is read
_TURNS = 8  # elements of the finite part


def inferred(
    model: nn.Module, learning: Learning, rows: Tensor, seed: int, turns: int = _TURNS
) -> tuple[Equivariance | None, str]:
    """The invariance of what a fresh copy learns of these samples, and what was found in words.

    A one-parameter turn is returned as its finite part, over which averages are exact; a compact
    algebra of more as the group that it spans.
    """
    x = learning.inputs
    if not isinstance(x, Tensor) or x.dim() not in (2, 3) or x.shape[-1] > _WIDEST:
        return None, ""
    if not isinstance(learning.targets, Tensor):
        return None, ""
    network = learning.longer(_LONGER).learned(fresh(model, seed)[0], rows, seed)
    score = learning.judged(network, rows)[0]
    if score < _LEARNED.get(learning.unit, score):
        return None, (
            f"no continuous symmetry was looked for: the samples are not learned, {learning.unit} "
            f"{abs(score):.2g}"
        )
    try:
        found = discover_data(network, x[rows.to(x.device)])
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        return None, f"no continuous symmetry: {error}"
    if not found.dimension:
        return None, f"no continuous symmetry: {found.note}"
    said = f"learned algebra: {found.name} (gap {found.gap:.2g}, shuffled {found.null_gap:.2g})"
    try:
        return found_turns(found, turns), said
    except ValueError:
        try:
            return found_claim(found), said
        except ValueError as error:
            return None, f"{said}, of which no claim is made: {error}"
