"""Discrete parameter symmetries: units exchanged (permutation) or reflected (sign flip)."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from eqtoolbox.weights.forms.held import CACHED
from eqtoolbox.weights.forms.regular import shared
from eqtoolbox.weights.forms.stack import Owned
from eqtoolbox.weights.parameter import DiscreteSymmetry, Parameters

if TYPE_CHECKING:  # for types alone
    from eqtoolbox.weights.search.member import Entry, Member


@dataclass(frozen=True, eq=False)
class Slots:
    """Indices of one parameter axis that belong to each unit: (units, entries).

    Where units lie across neighbouring axes, those from `axis` on count as one, row-major.
    """

    name: str
    axis: int
    positions: Tensor
    across: int = 1  # axes taken together


@dataclass(frozen=True, eq=False)
class AxisMove:
    """Entry k along one axis of a parameter becomes sign[k] times entry source[k]."""

    name: str
    axis: int
    source: Tensor  # (length of the axis,)
    sign: Tensor  # likewise
    across: int = 1  # axes from `axis` on that count as one

    def __call__(self, tensor: Tensor, over: bool = False) -> Tensor:
        """The parameter moved; it may be written over."""
        over = over and (self.across == 1 or tensor.is_contiguous())
        joined = _joined(tensor, self.axis, self.across)
        if not torch.equal(self.source, torch.arange(len(self.source))):
            joined = self._exchanged(joined, over)
        if bool((self.sign < 0).any()):
            shape = [-1 if a == self.axis else 1 for a in range(joined.dim())]
            sign = self.sign.reshape(shape).to(joined)
            joined = joined.mul_(sign) if over else joined * sign
        return tensor if over else joined.reshape(tensor.shape)

    def _exchanged(self, tensor: Tensor, over: bool) -> Tensor:
        """The tensor with its entries in their new places."""
        source = self.source.to(tensor.device)
        if not over:
            return tensor.index_select(self.axis, source)
        other = 1 if self.axis == 0 else 0
        new = (self.source != torch.arange(len(source))).nonzero().reshape(-1).to(source)
        # in stretches along another axis: what is exchanged fits into the cache
        moving = max(tensor.numel() * len(new) // len(source), 1)
        rows = max(1, CACHED * tensor.shape[other] // moving) if tensor.dim() > 1 else 0
        for part in torch.split(tensor, rows, other) if rows else (tensor,):
            if 2 * len(new) < len(source):
                part.index_copy_(self.axis, new, part.index_select(self.axis, source[new]))
            elif self.axis < part.dim() - 1:
                part.copy_(part.index_select(self.axis, source))
            else:  # twice as fast along the last axis
                shape = [-1 if a == self.axis else 1 for a in range(part.dim())]
                part.copy_(part.gather(self.axis, source.view(shape).expand(part.shape)))
        return tensor


@dataclass(frozen=True, kw_only=True)
class UnitSymmetry(DiscreteSymmetry):
    """Acts on units through the slots that they own in several parameters."""

    separable: ClassVar[bool] = True
    slots: tuple[Slots, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.name for slot in self.slots))

    @cached_property
    def owned(self) -> dict[str, dict[int, Tensor]]:
        """Positions (units, entries) by parameter and axis."""
        found: dict[str, dict[int, list[Tensor]]] = {}
        for slot in self.slots:
            found.setdefault(slot.name, {}).setdefault(slot.axis, []).append(slot.positions)
        return {n: {a: torch.cat(p, 1) for a, p in axes.items()} for n, axes in found.items()}

    @cached_property
    def across(self) -> dict[tuple[str, int], int]:
        """How many axes each of these is."""
        return {(slot.name, slot.axis): slot.across for slot in self.slots}

    @cached_property
    def _in_order(self) -> frozenset[tuple[str, int]]:
        """Axes whose first entries belong to the first unit, the next to the second, and so on."""
        each = ((n, a, p.reshape(-1)) for n, axes in self.owned.items() for a, p in axes.items())
        return frozenset((n, a) for n, a, p in each if torch.equal(p, torch.arange(len(p))))

    def rows(self, params: Parameters, which: Tensor | None = None) -> dict[str, Tensor]:
        """What each unit (of `which`) owns, (units, entries), by parameter and axis.

        Keys are `name` for the first axis, on which most parameters are owned, else `name[axis]`.
        """
        found = {}
        for name, axes in self.owned.items():
            for axis, positions in axes.items():
                whole = _joined(params[name].detach(), axis, self.across[name, axis]).movedim(
                    axis, 0
                )
                chosen = positions if which is None else positions[which]
                all_of_it = which is None and positions.numel() == len(whole)
                if not all_of_it or (name, axis) not in self._in_order:
                    whole = whole.index_select(0, chosen.reshape(-1).to(whole.device))
                key = name if axis == 0 else f"{name}[{axis}]"
                found[key] = whole.reshape(len(chosen), -1)
        return found

    @property
    def crossed(self) -> tuple[str, ...]:
        """Parameters that units own along more than one axis."""
        return tuple(name for name, axes in self.owned.items() if len(axes) > 1)


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
    def rows(self, params: Parameters, which: Tensor | None = None) -> dict[str, Tensor]:
        """What each of them (of `which`) owns, (things, entries), by what it is made of."""

    def element(self, params: Parameters, which: int) -> dict[str, Tensor]:
        return self.exchange(params, torch.tensor([which]), torch.tensor([which + 1]))

    def draw(self, generator: torch.Generator) -> Callable[[Parameters], dict[str, Tensor]]:
        order = torch.randperm(self.dimension + 1, generator=generator)
        return lambda params: self.permuted(params, order)

    def exchange(self, params: Parameters, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Things first[k] and second[k] change places for every k; none may occur twice."""
        return self.permuted(params, self.exchanged(first, second))

    def exchanged(self, first: Tensor, second: Tensor) -> Tensor:
        """The order of the things after that."""
        order = torch.arange(self.dimension + 1)
        order[first], order[second] = second, first
        return order


@dataclass(frozen=True, kw_only=True)
class Permutation(UnitSymmetry, Permuting):
    """Units i and i + 1 change places: rows of what makes them, columns of what reads them.

    n units have n - 1 generating elements. At the fixed point, two equal units, H T = T H. Where
    a normalisation reads running statistics these move along: give them among `params`.

    References:
        Simsek et al. 2021 (arXiv 2105.12221).
    """

    word: ClassVar[str] = "units"
    whole_heads: bool = False  # moves all of a head, not the features within it
    statistics: tuple[Slots, ...] = ()  # of buffers that a normalisation reads

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.name for slot in self.statistics))

    def permuted(self, params: Parameters, order: Tensor) -> dict[str, Tensor]:
        """Unit k replaced by unit order[k], in those parameters that are given."""
        moved: dict[str, Tensor] = {}
        for m in self.moves(params, order):
            tensor = moved.get(m.name, params[m.name])
            moved[m.name] = m(tensor, isinstance(params, Owned))
        return moved

    def moves(self, params: Parameters, order: Tensor) -> Iterator[AxisMove]:
        """What that does, axis by axis."""
        for slot in (*self.slots, *self.statistics):
            if slot.name in params:
                source = _places(params, slot)
                source[slot.positions.reshape(-1)] = slot.positions[order].reshape(-1)
                sign = torch.ones(len(source))
                yield AxisMove(slot.name, slot.axis, source, sign, slot.across)


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
        for m in self.moves(params, units):
            tensor = moved.get(m.name, params[m.name])
            moved[m.name] = m(tensor, isinstance(params, Owned))
        return moved

    def moves(self, params: Parameters, units: Tensor) -> Iterator[AxisMove]:
        """What that does, axis by axis."""
        for slot in self.slots:
            if slot.name in params:
                still = _places(params, slot)
                sign = torch.ones(len(still))
                sign[slot.positions[units].reshape(-1)] = -1.0
                yield AxisMove(slot.name, slot.axis, still, sign, slot.across)


def slots(member: "Member") -> tuple[Slots, ...]:
    """What each unit of a member owns; empty where units own different numbers of entries.

    Empty, too, where they lie across axes of a parameter in two ways.
    """
    found = []
    if twice(member.entries):
        return ()
    for entry in member.entries:
        by_unit = torch.from_numpy(entry.units)
        counts = by_unit.bincount(minlength=member.units)
        if int(counts.min()) != int(counts.max()):
            return ()
        order = torch.from_numpy(entry.positions)[_sorted(by_unit, entry.positions)]
        own = order.reshape(member.units, -1)
        found.append(Slots(entry.name, entry.axis, shared(own), entry.across))
    return tuple(found)


def _sorted(units: Tensor, positions: object) -> Tensor:
    by_position = torch.as_tensor(positions).argsort(stable=True)
    return by_position[units[by_position].argsort(stable=True)]


def twice(entries: "Sequence[Entry]") -> dict[str, None]:
    """Parameters across whose axes units lie, and not in one way alone."""
    ways: dict[str, set[tuple[int, int]]] = {}
    for e in entries:
        ways.setdefault(e.name, set()).add((e.axis, e.across))
    several = (n for n, own in ways.items() if len(own) > 1 and max(a for _, a in own) > 1)
    return dict.fromkeys(several)


def _joined(tensor: Tensor, axis: int, across: int) -> Tensor:
    """The tensor with neighbouring axes as one; a scalar has one of one entry."""
    if not tensor.dim():
        return tensor.reshape(1)
    return tensor if across == 1 else tensor.flatten(axis, axis + across - 1)


def _places(params: Parameters, slot: Slots) -> Tensor:
    """All indices along a slot's axes."""
    shape = params[slot.name].shape[slot.axis : slot.axis + slot.across]
    return torch.arange(math.prod(shape))
