"""Discrete parameter symmetries: units exchanged (permutation) or reflected (sign flip)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.general_linear import MatrixSymmetry
from eqtoolbox.symmetry.parameter import DiscreteSymmetry, Parameters

if TYPE_CHECKING:  # brings scipy
    from eqtoolbox.symmetry.search.members import Member


@dataclass(frozen=True, eq=False)
class Slots:
    """Indices of one parameter axis that belong to each unit: (units, entries)."""

    name: str
    axis: int
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class UnitSymmetry(DiscreteSymmetry):
    """Acts on units through the slots that they own in several parameters."""

    slots: tuple[Slots, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.name for slot in self.slots))


@dataclass(frozen=True, kw_only=True)
class Permutation(UnitSymmetry):
    """Units i and i + 1 change places: rows of what makes them, columns of what reads them.

    n units have n - 1 generating elements. At the fixed point, two equal units, H T = T H.

    References:
        Simsek et al. 2021 (arXiv 2105.12221).
    """

    family: ClassVar[str] = "permutation"

    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        return self.exchange(params, torch.tensor([which]), torch.tensor([which + 1]))

    def exchange(self, params: Parameters, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Units first[k] and second[k] change places for every k; no unit may occur twice."""
        moved: dict[str, Tensor] = {}
        for slot in self.slots:
            tensor = moved.get(slot.name, params[slot.name])
            order = torch.arange(tensor.shape[slot.axis], device=tensor.device)
            here, there = slot.positions[first].flatten(), slot.positions[second].flatten()
            order[here], order[there] = there.to(order), here.to(order)
            moved[slot.name] = tensor.index_select(slot.axis, order)
        return moved


@dataclass(frozen=True, kw_only=True)
class SignFlip(UnitSymmetry):
    """Unit i changes sign: in_i, out_i -> -in_i, -out_i around an odd map (tanh, identity).

    References:
        Chen, Lu & Hecht-Nielsen 1993, On the geometry of feedforward neural network error surfaces.
    """

    family: ClassVar[str] = "sign_flip"

    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        return self.flip(params, torch.tensor([which]))

    def flip(self, params: Parameters, units: Tensor) -> dict[str, Tensor]:
        """Several units change sign."""
        moved: dict[str, Tensor] = {}
        for slot in self.slots:
            tensor = moved.get(slot.name, params[slot.name])
            signs = torch.ones(tensor.shape[slot.axis], dtype=tensor.dtype, device=tensor.device)
            signs[slot.positions[units].flatten().to(signs.device)] = -1.0
            shape = [-1 if a == slot.axis else 1 for a in range(tensor.dim())]
            moved[slot.name] = tensor * signs.reshape(shape)
        return moved


def slots(member: "Member") -> tuple[Slots, ...]:
    """What each unit of a member owns; empty where units own different numbers of entries."""
    found = []
    for entry in member.entries:
        by_unit = torch.from_numpy(entry.units)
        counts = by_unit.bincount(minlength=member.units)
        if int(counts.min()) != int(counts.max()):
            return ()
        order = torch.from_numpy(entry.positions)[_sorted(by_unit, entry.positions)]
        found.append(Slots(entry.name, entry.axis, order.reshape(member.units, -1)))
    return tuple(found)


def _sorted(units: Tensor, positions: object) -> Tensor:
    by_position = torch.as_tensor(positions).argsort(stable=True)
    return by_position[units[by_position].argsort(stable=True)]


def propose_permutations(members: "list[Member]") -> Iterator[Permutation]:
    """Neighbours exchanged, for members whose units are alike.

    Members that share an axis (a depthwise convolution between two) move together.
    """
    joined: list[tuple[str, dict[tuple[str, int], Slots]]] = []
    for member in members:
        owned = {(slot.name, slot.axis): slot for slot in slots(member)}
        if not owned or member.units < 2:
            continue
        units = len(next(iter(owned.values())).positions)
        for k, (name, other) in enumerate(joined):
            same = len(next(iter(other.values())).positions) == units
            if same and other.keys() & owned.keys():
                joined[k] = (f"{name.split('-')[0]}-{member.name.split('-')[-1]}", other | owned)
                break
        else:
            joined.append((member.name, owned))
    for name, owned in joined:
        units = len(next(iter(owned.values())).positions)
        yield Permutation(name=name, dimension=units - 1, slots=tuple(owned.values()))


def propose_heads(found: list[MatrixSymmetry]) -> Iterator[Permutation]:
    """Heads exchanged: all that a head owns in query, key, value and output at once.

    A query-key and a value-output group belong together when they follow each other and have as
    many heads; rotary groups own a pair of features a frequency.
    """
    for first, second in pairwise(found):
        heads = second.blocks
        if heads < 2 or first.blocks % heads:
            continue
        owned = []
        for leg in (*first.legs, *second.legs):
            owned.append(Slots(leg.name, leg.axis, leg.positions.reshape(heads, -1)))
        layers = (first.name.split("-")[0], second.name.split("-")[-1])
        yield Permutation(
            name=f"{layers[0]}-{layers[1]} heads", dimension=heads - 1, slots=tuple(owned)
        )


def propose_sign_flips(members: "list[Member]") -> Iterator[SignFlip]:
    """Units that an odd number of exponents flips."""
    for member in members:
        owned = slots(member)
        if owned and all(rate % 2 == 1 for rate in member.signs):
            yield SignFlip(name=member.name, dimension=member.units, slots=owned)
