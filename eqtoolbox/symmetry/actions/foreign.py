"""Actions from other libraries' descriptions, by duck typing: e3nn irreps, escnn field types."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.symmetry.actions.linear import applied
from eqtoolbox.symmetry.groups.matrices import Rows, matrix


@dataclass(frozen=True)
class FromIrreps:
    """The action of O(3) (or the turning part of E(3)) on features of e3nn `Irreps`.

    Anything with a method `D_from_matrix(R) -> (d, d)` will do. It is called under a float64
    default: e3nn builds its Wigner matrices in the default dtype, and those made in float32 break
    S_g S_h = S_gh by 1e-6, which would be taken for the model's error.

    Args:
        irreps: such as `e3nn.o3.Irreps("8x0e + 4x1o")`.

    Example:
        >>> class Two:
        ...     def D_from_matrix(self, R):
        ...         return torch.block_diag(R, R)
        >>> from eqtoolbox.symmetry.groups.matrices import O3
        >>> FromIrreps(Two())(O3().identity, torch.ones(6))
        tensor([1., 1., 1., 1., 1., 1.])
    """

    irreps: Any
    tangent_error: ClassVar[float] = 1e-12  # relative; angles of small turns lose digits

    def __post_init__(self) -> None:
        if not callable(getattr(self.irreps, "D_from_matrix", None)):
            raise TypeError(
                f"expected irreps with a method D_from_matrix, such as e3nn.o3.Irreps, "
                f"got {self.irreps!r}"
            )

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        return applied(_represented(self, g), x)

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """d rho(A) x, from the logarithm of a turn by a sixteenth; degrees up to 8."""
        d = self.wigner(torch.linalg.matrix_exp(generator[:3, :3] / 16))
        change, one = torch.zeros_like(d), torch.eye(len(d), dtype=d.dtype)
        power = one
        for k in range(1, 41):
            power = power @ (d - one)
            change = change - (-1) ** k * power / k
        return applied(16 * change, x)

    def wigner(self, m: Tensor) -> Tensor:
        """Their matrix of a turn or mirror, (d, d) in float64."""
        with _float64():
            d: Tensor = self.irreps.D_from_matrix(m)
        return d.to(torch.float64)


@lru_cache(maxsize=64)  # one probe moves inputs and outputs to and fro by the same elements
def _represented(action: FromIrreps, g: Rows) -> Tensor:
    return action.wigner(matrix(g)[:3, :3])


@dataclass(frozen=True)
class FromFieldType:
    """The action of an escnn `FieldType` on images: its channels and the grid.

    Anything with `representation(element) -> (channels, channels)` will do. Elements here are
    those of Cyclic(4) or Dihedral(4); `element_of` makes them the other library's.

    Args:
        field_type: such as `escnn.nn.FieldType(gspace, [...])`.
        element_of: (k, flipped) or k -> an element of `field_type.gspace.fibergroup`.
        grid: the action on the pixels, such as quarter_turn or dihedral.
    """

    field_type: Any
    element_of: Callable[[Any], Any]
    grid: Callable[[Any, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(getattr(self.field_type, "representation", None)):
            raise TypeError(f"expected a field type with representation, got {self.field_type!r}")

    def __call__(self, g: Any, x: Tensor) -> Tensor:
        rho = torch.as_tensor(self.field_type.representation(self.element_of(g)))
        moved = self.grid(g, x)
        return torch.einsum("ij,...jhw->...ihw", rho.to(moved), moved)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
