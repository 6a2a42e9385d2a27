"""A lattice: how a group turns and mirrors the grid of an image, and what a window owes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.enforce.representation import Representation, Unfit


@dataclass(frozen=True, eq=False)
class Lattice:
    """Signed exchanges of the axes of a grid about its middle, one for each element.

    Entry p of the moved grid comes from turns[g] p, coordinates counted from the middle.
    """

    turns: Tensor  # (|G|, d, d) int64

    @classmethod
    def of(cls, pixels: Representation, sizes: Sequence[int]) -> "Lattice":
        """Read off from how pixels move.

        Raises:
            Unfit: they move otherwise, as by shifts around the edge.
        """
        turns = [_turn(source, tuple(sizes)) for source in pixels.source]
        lattice = cls(torch.stack(turns))
        if pixels.matrix is not None or not lattice.on(sizes).same(pixels):
            raise Unfit(
                "the group must turn or mirror the grid about its middle, and here it does not "
                "(shifts, warps or exchanged pixels)"
            )
        return lattice

    @property
    def reversed(self) -> list[bool]:
        """Axes whose direction some element turns round."""
        return (self.turns < 0).any(dim=2).any(dim=0).tolist()

    @property
    def exchanged(self) -> list[tuple[int, int]]:
        """Pairs of axes that some element exchanges."""
        return [(i, j) for i, j in (self.turns != 0).any(dim=0).nonzero().tolist() if i < j]

    def on(self, sizes: Sequence[int]) -> Representation:
        """How the pixels of a grid of these sizes move.

        Raises:
            Unfit: exchanged axes have different sizes.
        """
        for i, j in self.exchanged:
            if sizes[i] != sizes[j]:
                raise Unfit(f"axes of lengths {sizes[i]} and {sizes[j]} cannot be exchanged")
        axes = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")
        twice = torch.stack([2 * a - (n - 1) for a, n in zip(axes, sizes, strict=True)]).flatten(1)
        last = torch.tensor(sizes)[:, None] - 1
        place = (torch.einsum("gij,jp->gip", self.turns, twice) + last) // 2
        strides = [int(torch.tensor(sizes[i + 1 :]).prod()) for i in range(len(sizes))]
        source = sum(place[:, i] * s for i, s in enumerate(strides))
        assert isinstance(source, Tensor)
        return Representation(source=source, sign=torch.ones(source.shape, dtype=torch.float64))

    def demand_alike(self, what: str, values: Sequence[object]) -> None:
        """Exchanged axes need the same window.

        Raises:
            Unfit: they differ.
        """
        for i, j in self.exchanged:
            if values[i] != values[j]:
                raise Unfit(f"{what} {tuple(values)} differs along axes that are exchanged")

    def demand_centred(
        self, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]
    ) -> None:
        """A window that moves by strides must end as far from one edge as it began from the other.

        Raises:
            Unfit: it leaves pixels over on one side of an axis that is turned round.
        """
        for word, values in (("kernel", kernel), ("stride", stride), ("padding", pad)):
            self.demand_alike(word, values)
        for n, k, s, p, turned in zip(sizes, kernel, stride, pad, self.reversed, strict=True):
            over = (n + 2 * p - k) % s
            if turned and over:
                raise Unfit(
                    f"a stride of {s} over {n} pixels (window {k}, padding {p}) leaves {over} over "
                    f"on one side, so the turned grid falls between: {n - over} and "
                    f"{n - over + s} pixels fit, or another padding"
                )


def _turn(source: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The signed exchange of axes by which one element moves pixels, as far as steps show it."""
    d = len(sizes)
    turn = torch.zeros(d, d, dtype=torch.int64)
    place = torch.stack(torch.unravel_index(source.reshape(sizes), sizes))
    for j in range(d):
        if sizes[j] > 1:
            turn[:, j] = (place.select(j + 1, 1) - place.select(j + 1, 0)).reshape(d, -1)[:, 0]
    for i in range(d):
        if not turn[i].any():
            turn[i, next((j for j in [i, *range(d)] if not turn[:, j].any()), i)] = 1
    return turn.clamp(-1, 1)
