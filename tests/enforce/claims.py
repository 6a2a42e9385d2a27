"""Claims over many groups and representations, each with a model that breaks it and a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import Chain, Each, Equivariance
from eqtoolbox.symmetry.actions.action import dihedral, flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.fields import vector_field
from eqtoolbox.symmetry.actions.linear import Powers
from eqtoolbox.symmetry.actions.permuting import Box, Permute, Reverse, Roll, Signed
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.each import factor
from eqtoolbox.symmetry.groups import (
    Cyclic,
    CyclicTranslation,
    Dihedral,
    Flip,
    Octahedral,
    Product,
    Semidirect,
    Sign,
    Symmetric,
)


class Mlp(nn.Module):
    """Any shape to any shape, with no symmetry at all."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.Size(before).numel(), torch.Size(after).numel()
        self.shape = after
        self.layers = nn.Sequential(
            nn.Linear(sizes[0], 16), nn.Tanh(), nn.Linear(16, sizes[1]), nn.Unflatten(1, after)
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x.flatten(1))
        return made


class Field(nn.Module):
    """A dict of a picture and a vector to a dict of a field, an energy and None."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp((1, 4, 4), (2, 4, 4))
        self.head = nn.Linear(3, 1)

    def forward(self, picture: Tensor, charge: Tensor | None = None) -> dict[str, Any]:
        field = self.inner(picture)
        if charge is not None:
            field = field * self.head(charge)[:, :, None, None]
        return {"field": field, "energy": field[:, 0, 0].sum(1), "nothing": None}


@dataclass(frozen=True)
class Case:
    claim: Equivariance
    model: Callable[[], nn.Module]
    shape: Any  # of a sample, or a dict of such

    def batch(self, count: int = 8) -> Any:
        rng = torch.Generator().manual_seed(1)
        draw = lambda s: torch.randn(count, *s, generator=rng, dtype=torch.float64)
        return (
            {k: draw(s) for k, s in self.shape.items()}
            if isinstance(self.shape, dict)
            else draw(self.shape)
        )


def _case(
    group: Any, before: Any, after: Any, shape: tuple[int, ...], out: tuple[int, ...]
) -> Case:
    return Case(Equivariance(group, before, after), lambda: Mlp(shape, out).double(), shape)


_third = Powers(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
_swap = Signed((1, 0, 3, 2), (-1, 1, 1, -1))
_square = (1, 4, 4)

CASES = {
    "cyclic, invariant": _case(Cyclic(4), quarter_turn, trivial, _square, (5,)),
    "cyclic, images": _case(Cyclic(4), quarter_turn, quarter_turn, _square, _square),
    "cyclic, a matrix": _case(Cyclic(3), _third, _third, (3,), (3,)),
    "cyclic, a series": _case(Cyclic(6), Roll(-1), Roll(-1), (6,), (6,)),
    "signed, a robot": _case(_swap.group, _swap, _swap, (4,), (4,)),
    "dihedral, vector fields": _case(Dihedral(4), vector_field, vector_field, (2, 4, 4), (2, 4, 4)),
    "dihedral, scalar to vectors": _case(Dihedral(4), dihedral, vector_field, _square, (2, 4, 4)),
    "flip, images": _case(Flip(), flip, flip, (1, 3, 5), (2, 3, 5)),
    "flip, time": _case(Flip(), Reverse(), Reverse(-1, -1), (6,), (6,)),
    "sign, odd": _case(Sign(), Parity(), Parity(), (3,), (2,)),
    "sign, even": _case(Sign(), Parity(), trivial, (3,), (2,)),
    "symmetric, rows": _case(Symmetric(3), Permute(1), Permute(1), (3, 2), (3, 2)),
    "symmetric, a graph": _case(Symmetric(3), Permute(1, 2), Permute(1), (3, 3), (3,)),
    "octahedral, volumes": _case(Octahedral(), Box(), trivial, (1, 3, 3, 3), (2,)),
    "octahedral, oblong voxels": _case(
        Octahedral((2.0, 1.0, 1.0)), Box(True), Box(), (3, 2, 3, 3), (1, 2, 3, 3)
    ),
    "shifts that wrap": _case(CyclicTranslation((2, 3)), roll, roll, (1, 2, 3), (1, 2, 3)),
    "product, images": _case(
        Product(CyclicTranslation((2, 3)), Flip()), factor(0, roll), factor(0, roll),
        (1, 2, 3), (1, 2, 3),
    ),
    "product, both": _case(
        Product(Sign(), Symmetric(3)), Chain(factor(0, Parity()), factor(1, Permute(1))),
        Chain(factor(0, Parity()), factor(1, Permute(1))), (3, 2), (3,),
    ),
    "semidirect": _case(
        Semidirect(Cyclic(4), Sign(), lambda s, k: (s * k) % 4),
        lambda g, x: torch.rot90(x.flip(-1) if g[1] < 0 else x, g[0], (-2, -1)), trivial,
        _square, (3,),
    ),
    "arguments by name": Case(
        Equivariance(
            Dihedral(4), Each({"picture": dihedral, "charge": trivial}),
            Each({"field": vector_field, "energy": trivial}),
        ),
        lambda: Field().double(), {"picture": _square, "charge": (3,)},
    ),
}  # fmt: skip
