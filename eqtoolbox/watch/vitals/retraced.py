"""Retraced: measured steps that begin, to the bit, where an earlier one began.

Training by itself does not come back: of a million numbers each would have to. Something has
written the weights that were there before, and the steps between the two are undone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 256  # beginnings that are remembered, the last ones
ROUNDED = 1e-6  # of the weights: a step so short may swing between two neighbouring numbers
PLACES, BITS = 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D  # odd: multiplied by them none is lost
COLUMNS = 2**15  # words that stay in cache


@dataclass(frozen=True, kw_only=True)
class Returned:
    """A step that begins where an earlier one began."""

    steps: int  # since then, which were undone
    began: int  # number of the earlier step
    times: int  # how often a step has begun there again so far


class Retraced:
    """Where measured steps began that moved the weights and lowered the loss of their batch.

    Others are no loss where they are undone: a step of length 0, that of a line search that is
    refused, one beyond which a training diverged.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[int, int]] = {}  # by fingerprint: step, times it was back

    def state_dict(self) -> dict[str, Any]:
        """What later steps are compared with."""
        return {"began": [[mark, *at] for mark, at in self._began.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._began = {mark: (step, times) for mark, step, times in state.get("began", ())}

    def look(
        self, step: int, before: Mapping[str, Tensor], moved: float, lowered: bool
    ) -> Returned | None:
        """What a step returned to; None where it begins at a new place.

        Args:
            step: its number.
            before: theta_t, parameters by name.
            moved: length of the step over that of the weights.
            lowered: whether it lowered the loss of its own batch.
        """
        mark = fingerprint(before)
        known = self._began.pop(mark, None)
        if known is not None or (moved > ROUNDED and lowered):
            self._began[mark] = step, 0 if known is None else known[1] + 1
        while len(self._began) > KEPT:
            del self._began[next(iter(self._began))]
        if known is None:
            return None
        return Returned(steps=step - known[0], began=known[0], times=known[1] + 1)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A name of these very numbers: a hash of their bits, in their order, by tensor.

    Of each tensor the bits, in words w of 64, make columns Σ_k w_ik P^k modulo 2^64 of every 2^15th
    word, and these, mixed with their index i, a sum: of integers, the same in any order, made on
    the tensor's own device about 1 ns an entry on a CPU. One transfer to the host.

    Args:
        tensors: of any shape and floating-point type, real or complex, by name.

    Returns:
        32 hexadecimal digits. Numbers that differ in a bit have another name, but for a chance of
        about 2^-64.

    Reference:
        Vigna 2016 (1402.6246) and Steele & Vigna 2022 (2001.05304), the multipliers.

    Example:
        >>> x = {"w": torch.ones(3)}
        >>> y = {"w": torch.nextafter(x["w"], torch.zeros(3))}
        >>> fingerprint(x) == fingerprint({"w": torch.ones(3)}), fingerprint(x) == fingerprint(y)
        (True, False)
    """
    dense = {n: x.detach() for n, x in tensors.items() if x.layout is torch.strided}
    sums = [_mixed(torch.view_as_real(x) if x.is_complex() else x) for x in dense.values()]
    there = torch.stack([s.to(sums[0].device) for s in sums]).tolist() if sums else []
    told = [(n, str(x.dtype), *x.shape, s) for (n, x), s in zip(dense.items(), there, strict=True)]
    return hashlib.blake2b(repr(sorted(told)).encode(), digest_size=16).hexdigest()


def _mixed(x: Tensor) -> Tensor:
    """The sum over the words of a tensor, a scalar; zeros fill its last word."""
    flat, each = x.reshape(-1), 8 // x.element_size()
    end = len(flat) - len(flat) % each
    rest = flat.new_zeros(each)
    rest[: len(flat) - end] = flat[end:]
    words = flat[:end] if flat.storage_offset() % each == 0 else flat[:end].clone()
    rows = torch.split(words.view(torch.int64), COLUMNS)
    columns = rest.new_zeros(len(rows[0]), dtype=torch.int64)
    for row in rows:
        columns.mul_(PLACES)[: len(row)].add_(row)
    mixed = columns.add_(torch.arange(len(columns), device=x.device).mul_(PLACES)).mul_(BITS)
    mixed.bitwise_xor_(mixed >> 29).mul_(PLACES)  # not linear: moves of several never cancel
    return mixed.sum() * PLACES + rest.view(torch.int64)[0]
