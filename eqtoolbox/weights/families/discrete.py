"""Discrete parameter symmetries: units exchanged (permutation) or reflected (sign flip)."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.general_linear import MatrixLeg, MatrixSymmetry
from eqtoolbox.weights.parameter import DiscreteSymmetry, Parameters

if TYPE_CHECKING:  # brings scipy
    from eqtoolbox.weights.search.member import Member


@dataclass(frozen=True, eq=False)
class Slots:
    """Indices of one parameter axis that belong to each unit: (units, entries)."""

    name: str
    axis: int
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class UnitSymmetry(DiscreteSymmetry):
    """Acts on units through the slots that they own in several parameters."""

    separable: ClassVar[bool] = True
    slots: tuple[Slots, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.name for slot in self.slots))

    def owned(self) -> dict[str, dict[int, Tensor]]:
        """Positions (units, entries) by parameter and axis."""
        found: dict[str, dict[int, list[Tensor]]] = {}
        for slot in self.slots:
            found.setdefault(slot.name, {}).setdefault(slot.axis, []).append(slot.positions)
        return {n: {a: torch.cat(p, 1) for a, p in axes.items()} for n, axes in found.items()}

    def rows(self, params: Parameters) -> dict[str, Tensor]:
        """What each unit owns, (units, entries) in float64, by parameter and axis.

        Keys are `name` for the first axis, on which most parameters are owned, else `name[axis]`.
        """
        found = {}
        for name, axes in self.owned().items():
            for axis, positions in axes.items():
                chosen = params[name].detach().movedim(axis, 0)[positions.to(params[name].device)]
                key = name if axis == 0 else f"{name}[{axis}]"
                found[key] = chosen.reshape(len(positions), -1).double()
        return found


@dataclass(frozen=True, kw_only=True)
class Permuting(DiscreteSymmetry):
    """`dimension` + 1 things that are alike change places: neighbours generate the group.

    Whatever they are made of: a family says how they are permuted and what each of them owns.
    """

    family: ClassVar[str] = "permutation"
    word: ClassVar[str] = ""  # for them, where the name does not end with it

    @abstractmethod
    def permuted(self, params: Parameters, order: Tensor) -> dict[str, Tensor]:
        """Thing k replaced by thing order[k], in those parameters that are given."""

    @abstractmethod
    def rows(self, params: Parameters) -> dict[str, Tensor]:
        """What each of them owns, (things, entries) in float64, by what it is made of."""

    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        return self.exchange(params, torch.tensor([which]), torch.tensor([which + 1]))

    def draw(self, generator: torch.Generator) -> Callable[[Parameters], dict[str, Tensor]]:
        order = torch.randperm(self.dimension + 1, generator=generator)
        return lambda params: self.permuted(params, order)

    def exchange(self, params: Parameters, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Things first[k] and second[k] change places for every k; none may occur twice."""
        order = torch.arange(self.dimension + 1)
        order[first], order[second] = second, first
        return self.permuted(params, order)


@dataclass(frozen=True, kw_only=True)
class Permutation(UnitSymmetry, Permuting):
    """Units i and i + 1 change places: rows of what makes them, columns of what reads them.

    n units have n - 1 generating elements. At the fixed point, two equal units, H T = T H.

    References:
        Simsek et al. 2021 (arXiv 2105.12221).
    """

    word: ClassVar[str] = "units"
    whole_heads: bool = False  # moves all of a head, not the features within it

    def permuted(self, params: Parameters, order: Tensor) -> dict[str, Tensor]:
        """Unit k replaced by unit order[k], in those parameters that are given."""
        moved: dict[str, Tensor] = {}
        for slot in self.slots:
            if slot.name not in params:
                continue
            tensor = moved.get(slot.name, params[slot.name])
            source = torch.arange(tensor.shape[slot.axis])
            source[slot.positions.reshape(-1)] = slot.positions[order].reshape(-1)
            moved[slot.name] = tensor.index_select(slot.axis, source.to(tensor.device))
        return moved


@dataclass(frozen=True, kw_only=True)
class SignFlip(UnitSymmetry):
    """Unit i changes sign: in_i, out_i -> -in_i, -out_i around an odd map (tanh, identity).

    References:
        Chen, Lu & Hecht-Nielsen 1993, On the geometry of feedforward neural network error surfaces.
    """

    family: ClassVar[str] = "sign_flip"

    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        return self.flipped(params, torch.tensor([which]))

    def draw(self, generator: torch.Generator) -> Callable[[Parameters], dict[str, Tensor]]:
        units = torch.randint(0, 2, (self.dimension,), generator=generator).nonzero().reshape(-1)
        return lambda params: self.flipped(params, units)

    def flipped(self, params: Parameters, units: Tensor) -> dict[str, Tensor]:
        """The given units reflected, in those parameters that are given."""
        moved: dict[str, Tensor] = {}
        for slot in self.slots:
            if slot.name not in params:
                continue
            tensor = moved.get(slot.name, params[slot.name])
            signs = torch.ones(tensor.shape[slot.axis], dtype=tensor.dtype)
            signs[slot.positions[units].reshape(-1)] = -1.0
            shape = [-1 if a == slot.axis else 1 for a in range(tensor.dim())]
            moved[slot.name] = tensor * signs.reshape(shape).to(tensor.device)
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
    for first, second in pairwise(m for m in found if m.blocks > 1):
        heads = second.blocks
        if first.blocks % heads or _parent(first.names[0]) != _parent(second.names[0]):
            continue
        owned = []
        for leg in (*first.legs, *second.legs):
            owned.append(Slots(leg.name, leg.axis, leg.positions.reshape(heads, -1)))
        name = f"{first.name.split('-')[0]}-{second.name.split('-')[-1]}"
        yield Permutation(
            name=f"{name} heads", dimension=heads - 1, slots=tuple(owned), whole_heads=True
        )
        yield from _grouped_queries(name, heads, (*first.legs, *second.legs))


def _parent(parameter: str) -> str:
    """`layers.0.attention` for `layers.0.attention.query.weight`."""
    return re.sub(r"[./]?[^./]*[./][^./]*$", "", parameter)


def _grouped_queries(name: str, heads: int, legs: tuple[MatrixLeg, ...]) -> Iterator[Permutation]:
    """Query heads that share a key and value: all that they own in query and output."""
    copies = {leg.positions.shape[1] for leg in legs} - {1}
    if len(copies) != 1:
        return
    queries = copies.pop()
    wide = [leg for leg in legs if leg.positions.shape[1] == queries]
    split = [leg.positions.reshape(heads, -1, *leg.positions.shape[1:]) for leg in wide]
    for head in range(heads):
        owned = tuple(
            Slots(leg.name, leg.axis, of[head].transpose(0, 1).reshape(queries, -1))
            for leg, of in zip(wide, split, strict=True)
        )
        yield Permutation(
            name=f"{name} queries of head {head}",
            dimension=queries - 1,
            slots=owned,
            whole_heads=True,
        )


def propose_sign_flips(members: "list[Member]") -> Iterator[SignFlip]:
    """Units that an odd number of exponents flips."""
    for member in members:
        odd = tuple(e for e in member.entries if e.rates[0] % 2 == 1)
        owned = slots(replace(member, entries=odd))
        if owned:
            yield SignFlip(name=member.name, dimension=member.units, slots=owned)
