"""Judged: the relative error out of its sums, of one batch or of several, and the verdict on it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eqtoolbox.record.record import HOLDS, VIOLATED, Verdict
from eqtoolbox.symmetry.floor import RANDOM_NOTE
from eqtoolbox.symmetry.result import EquivarianceResult

_HIDDEN = "the floor hides any violation: give images that are band_limited, float64, exact actions"
_UNRELATED = math.sqrt(2.0)  # relative error of a function that knows nothing of the group


def of_batches(found: Sequence[EquivarianceResult], samples: Sequence[int]) -> EquivarianceResult:
    """What was found on several batches, as one: sums are added, floors are the largest.

    Shares of the loss count each batch's loss alike, as training over several processes does; the
    orbit variance stays that of the first batch. Of outputs of several tensors there are no sums:
    the first batch's result is returned.

    Args:
        found: on each batch with the same elements.
        samples: in each.
    """
    first = found[0]
    if len(found) == 1 or not first.sums:
        return first
    squares, energies = (
        torch.tensor([one.sums[k] for one in found], dtype=torch.float64) for k in (0, 1)
    )
    error, stderr, each = ratio([*squares.sum(0)], [*energies.sum(0)], first.enumerated)
    floor = max(one.floor for one in found)
    verdict, note = judged(error, floor, first.note)
    if verdict == "holds" and all(one.verdict == "trivial" for one in found):
        verdict = "trivial"
    share = [n / sum(samples) for n in samples]
    agreed = [one.consistency for one in found]
    worst = max(range(len(each)), key=lambda i: each[i])
    elements = {one.worst_element for one in found if one.worst == max(o.worst for o in found)}
    return replace(
        first,
        relative_error=error,
        stderr=stderr,
        worst=each[worst],
        worst_element=next(iter(elements)),
        floor=floor,
        verdict=verdict,
        note=note,
        percent_of_loss=_percent(found),
        mean_square=sum(w * one.mean_square for w, one in zip(share, found, strict=True)),
        consistency=None
        if any(a is None for a in agreed)
        else sum(w * a for w, a in zip(share, agreed, strict=True) if a is not None),
        sums=(squares.sum(0).tolist(), energies.sum(0).tolist()),
    )


def _percent(found: Sequence[EquivarianceResult]) -> float | None:
    """100 sum_r gap_r / sum_r loss_r."""
    if any(one.percent_of_loss is None for one in found):
        return None
    lost = sum((one.percent_of_loss or 0.0) * one.mean_loss for one in found)
    return lost / sum(one.mean_loss for one in found)


def ratio(
    squares: list[Tensor], energies: list[Tensor], enumerated: bool
) -> tuple[float, float, list[float]]:
    """sqrt(sum of squares / sum of energies), its standard error, and the same for each element."""
    above, below = torch.stack(squares), torch.stack(energies)
    each = (above / below).sqrt().tolist()  # 0 / 0 is NaN
    count, scale = len(squares), float(below.mean())
    level = float(above.mean() / below.mean())
    error = math.sqrt(level)
    if enumerated or error == 0.0:
        return error, 0.0, each
    if count == 1 or not math.isfinite(error):
        return error, math.nan, each
    residual = float((above - level * below).square().sum()) / (count - 1)
    return error, math.sqrt(residual / count) / (2.0 * error * scale), each


def judged(error: float, floor: float, note: str) -> tuple[Verdict, str]:
    """The verdict on an error with its floor, and what hides the error in the note."""
    if math.isnan(error):
        return "unresolved", note or "all outputs are zero: nothing to compare"
    if error > VIOLATED * floor:
        return "violated", note
    if VIOLATED * floor >= _UNRELATED:
        return "unresolved", note or _HIDDEN
    trusted = error <= HOLDS * floor and note != RANDOM_NOTE
    return "holds" if trusted else "unresolved", note
