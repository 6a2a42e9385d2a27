"""Exchanges of things of one kind: identical atoms of a molecule, equal limbs, shared types."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial, prod
from typing import Annotated, Any

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.symmetry.actions.action import Action
from eqtoolbox.symmetry.groups.finite import Permutation, Symmetric
from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.structure import Tree, tensors


@checked
@dataclass(frozen=True)
class Alike(Group):
    """S_a x S_b x ...: the permutations of 0 .. n-1 that keep every label (a Young subgroup).

    Elements are those of Symmetric(n), i -> g[i], so that `Permute` is their action.

    Args:
        labels: the kind of each of the n things; atomic numbers, say.

    Raises:
        ValueError: fewer than two labels, or elements() of more than 5,040 permutations.

    Example:
        >>> methane = Alike((6, 1, 1, 1, 1))
        >>> methane.order, methane.identity
        (24, (0, 1, 2, 3, 4))
    """

    labels: Annotated[tuple[Any, ...], OWN]

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Iterable):
            raise TypeError(f"labels must name each of the things, got {self.labels!r}")
        labels = self.labels.tolist() if hasattr(self.labels, "tolist") else self.labels
        object.__setattr__(self, "labels", tuple(labels))
        if len(self.labels) < 2:
            raise ValueError(f"labels must name at least two things, got {self.labels!r}")

    @classmethod
    def of(cls, species: Tensor) -> "Alike":
        """The group of a batch whose samples all have the same kinds in the same places.

        Args:
            species: (batch, n) whole numbers, or (batch, n, kinds) one-hot.

        Raises:
            ValueError: another shape, or species that differ from sample to sample.

        Example:
            >>> Alike.of(torch.tensor([[8, 1, 1], [8, 1, 1]])).name
            'alike1-2'
        """
        if species.dim() not in (2, 3) or species.numel() == 0:
            raise ValueError(
                f"species must be (batch, n) or one-hot (batch, n, kinds), got shape "
                f"{tuple(species.shape)}"
            )
        differs = (species != species[:1]).flatten(1).any(1).nonzero().flatten().tolist()
        if differs:
            raise ValueError(
                f"species must be the same across the batch: sample {differs[0]} differs from the "
                "first; make batches of one formula, or take Symmetric(n) and permute species too"
            )
        rows = species[0].tolist()
        return cls(tuple(tuple(row) if isinstance(row, list) else row for row in rows))

    @property
    def places(self) -> list[list[int]]:
        """Where each kind is, in order of appearance."""
        kinds: dict[Any, list[int]] = {}
        for i, label in enumerate(self.labels):
            kinds.setdefault(label, []).append(i)
        return list(kinds.values())

    @property
    def name(self) -> str:
        return "alike" + "-".join(str(len(p)) for p in self.places)

    @property
    def order(self) -> int:
        return prod(factorial(len(p)) for p in self.places)

    @property
    def identity(self) -> Permutation:
        return tuple(range(len(self.labels)))

    def compose(self, g: Permutation, h: Permutation) -> Permutation:
        return tuple(g[i] for i in h)

    def inverse(self, g: Permutation) -> Permutation:
        return Symmetric(len(self.labels)).inverse(g)

    def elements(self) -> Iterator[Permutation]:
        if self.order > factorial(7):
            raise ValueError(f"{self.name} has {self.order} elements; draw some with sample()")
        each = [list(permutations(range(len(p)))) for p in self.places]
        return (self._joined(parts) for parts in product(*each))

    def sample(self, count: int, generator: torch.Generator) -> list[Permutation]:
        drawn = [Symmetric(len(p)).sample(count, generator) for p in self.places]
        return [self._joined(parts) for parts in zip(*drawn, strict=True)]

    def _joined(self, parts: tuple[Permutation, ...]) -> Permutation:
        """One permutation of all from one of each kind."""
        g = list(self.identity)
        for place, part in zip(self.places, parts, strict=True):
            for i, image in enumerate(part):
                g[place[i]] = place[image]
        return tuple(g)


@checked
@dataclass(frozen=True)
class Kept:
    """What a transformation must leave as it is, such as the species under exchanges of atoms.

    x comes back if `action` does not move it, and is refused if it does: for claims of `Alike`
    whose labels are not those of the batch.

    Example:
        >>> from eqtoolbox.symmetry.actions.permuting import Permute
        >>> Kept(Permute(-1))((0, 2, 1), torch.tensor([[8, 1, 1]]))
        tensor([[8, 1, 1]])
    """

    action: Action

    def __call__(self, g: Element, x: Tree) -> Tree:
        pairs = zip(tensors(self.action(g, x)), tensors(x), strict=True)
        for moved, still in pairs:
            rows = (moved != still).reshape(len(still), -1).any(1).nonzero().flatten().tolist()
            if rows:
                raise ValueError(
                    f"sample {rows[0]} is changed by {g!r}: what is exchanged there is not alike; "
                    "build the group from this batch (Alike.of), with one formula a batch"
                )
        return x
