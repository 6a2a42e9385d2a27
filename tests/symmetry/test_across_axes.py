"""Units across several axes of a parameter: exchanges and signs, against brute force.

A group is compared as what it does to the hidden channels of a network: pairs of permutations, one
of each hidden layer, that keep the pattern of its weights.
"""

import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.families.discrete import Permutation, SignFlip
from eqtoolbox.weights.orbit.approach import approaches
from eqtoolbox.weights.search.found import Found

Order = tuple[int, ...]
Pair = tuple[Order, Order]
WIDTH = 4


class Grouped(nn.Module):
    """Four channels, two groups, four channels."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.a, self.h = nn.Conv1d(2, WIDTH, 1), nn.Conv1d(WIDTH, 3, 1)
        self.w = nn.Conv1d(WIDTH, WIDTH, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.w(self.activation(self.a(x[..., None]))))
        return self.h(z).flatten(1)


class Stacked(nn.Module):
    """The same with the groups along axes of their own."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        draw = lambda *shape: nn.Parameter(torch.randn(shape))
        self.a, self.w, self.h = draw(2, 2, 2), draw(2, 2, 2), draw(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(torch.einsum("bi,ghi->bgh", x, self.a))
        z = self.activation(torch.einsum("bgh,gkh->bgk", z, self.w))
        return torch.einsum("bgk,gko->bo", z, self.h)


class Split(nn.Module):
    """A hidden layer that is cut in groups, for nothing: all its units are alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.h = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(F.gelu(self.a(x).view(-1, 2, 2)).flatten(1))


BATCH = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


def permutations(found: Found) -> list[Permutation]:
    return [s for s in found if isinstance(s, Permutation) and s.status == "verified"]


def act(model: nn.Module, s: Permutation, which: int) -> Pair:
    """What a generating element does to the two hidden layers."""
    params = {n: p.detach() for n, p in model.named_parameters()}
    rows, columns = (
        params["a" if "a" in params else "a.weight"],
        params.get("h.weight", params.get("h")),
    )
    assert columns is not None
    stacked = "h" in params
    first = torch.arange(WIDTH).view(2, 2, 1) if stacked else torch.arange(WIDTH).view(-1, 1, 1)
    last = torch.arange(WIDTH).view(2, 2, 1) if stacked else torch.arange(WIDTH).view(1, -1, 1)
    coded = dict(params)
    name = "" if stacked else ".weight"
    coded["a" + name] = first.double().expand(rows.shape)
    coded["h" + name] = last.double().expand(columns.shape)
    moved = {**coded, **s.element(coded, which)}
    one = moved["a" + name].reshape(WIDTH, -1)[:, 0]
    two = moved["h" + name]
    two = two[..., 0].flatten() if stacked else two[0].flatten()
    return tuple(one.int().tolist()), tuple(two.int().tolist())


def generated(pairs: Iterable[Pair]) -> set[Pair]:
    """The group."""
    still = (tuple(range(WIDTH)),) * 2
    generators, known, new = list(pairs), {still}, [still]
    while new:
        at = new.pop()
        for g in generators:
            there = tuple(tuple(of[k] for k in by) for of, by in zip(at, g, strict=True))
            if there not in known:
                known.add(there)
                new.append(there)
    return known


def patterned() -> set[Pair]:
    """By brute force: orders of both layers after which every group reads its own channels."""
    allowed = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    orders = list(itertools.permutations(range(WIDTH)))
    return {
        (one, two)
        for one, two in itertools.product(orders, orders)
        if torch.equal(allowed[list(two)][:, list(one)], allowed)
    }


@pytest.mark.parametrize("kind", [Grouped, Stacked])
def test_exchanges_across_axes_are_those_of_brute_force(kind: type[nn.Module]) -> None:
    model = kind()
    found = permutations(discover(model, BATCH))
    assert any(slot.across > 1 for s in found for slot in s.slots)
    made = generated(act(model.double(), s, k) for s in found for k in range(s.dimension))
    assert made == patterned() and len(made) == 32


def test_units_that_are_cut_in_groups_for_nothing_are_all_exchanged() -> None:
    (found,) = permutations(discover(Split(), BATCH))
    assert found.dimension == WIDTH - 1


@pytest.mark.parametrize("kind", [Grouped, Stacked])
def test_signs_across_axes_are_found_for_every_channel(kind: type[nn.Module]) -> None:
    """Around an odd map every hidden channel has a sign: brute force flips one after the other."""
    model = kind(torch.tanh)
    flips = [s for s in discover(model, BATCH) if isinstance(s, SignFlip)]
    assert sum(s.dimension for s in flips) == 2 * WIDTH
    assert not [s for s in discover(kind(), BATCH) if isinstance(s, SignFlip)]  # GELU is not odd
    model = model.double()
    params = {n: p.detach() for n, p in model.named_parameters()}
    x = BATCH[0].double()
    y = torch.func.functional_call(model, params, (x,))
    for s in flips:
        for k in range(s.dimension):
            moved = s.element(params, k)
            there = torch.func.functional_call(model, {**params, **moved}, (x,))
            changed = sum(int((moved[n] != params[n]).sum()) for n in moved)
            assert torch.allclose(there, y, atol=1e-14) and changed > 0
            one = {n: p for n, p in moved.items() if n != next(iter(moved))}
            broken = torch.func.functional_call(model, {**params, **one}, (x,))
            assert not torch.allclose(broken, y, atol=1e-6)  # the must-fail twin


@pytest.mark.parametrize("kind", [Grouped, Stacked])
def test_distances_count_every_entry_once(kind: type[nn.Module]) -> None:
    """|u_i - u_j| / sqrt(|u_i|^2 + |u_j|^2) from the element itself, and the reflection's basis."""
    model = kind().double()
    params = {n: p.detach() for n, p in model.named_parameters()}
    for s in permutations(discover(model, BATCH)):
        for near in approaches(s, params, 10, 0.0)[0]:
            z = near.reflection.coordinates(params)
            moved = near.reflection(params)
            length = sum(float((moved[n] - p).square().sum()) for n, p in params.items()) ** 0.5
            assert sum(float(c.square().sum()) for c in z.values()) ** 0.5 == pytest.approx(
                length / 2
            )
            mean = near.reflection.symmetric(params)
            again = near.reflection(mean)
            assert all(torch.allclose(again[n], mean[n]) for n in mean)
            back = near.reflection.embed(z, params)
            assert all(torch.allclose(back[n], params[n] - mean[n]) for n in params)
            assert length > 0 and near.distance > 0
