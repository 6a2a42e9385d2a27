"""Entries of an axis are held as regular blocks, and give back the indices they were made of."""

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.families.diagonal import Rescale
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.algebra import ROTATIONS
from eqtoolbox.weights.forms.diagonal import Leg, leg
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.forms.regular import RegularEntries, ScatteredEntries, blocks
from tests.laws import oracle

EVERY = torch.arange(24)
CASES = {  # positions, units, blocks that they make
    "an axis": (EVERY, EVERY, 1),
    "backwards": (EVERY, EVERY.flip(0), 1),
    "stretches after a flatten": (EVERY, EVERY // 4, 1),
    "interleaved": (EVERY, EVERY % 6, 1),
    "heads of two sizes": (EVERY, (EVERY // 8) * 2 + EVERY % 2, 1),
    "part of an axis": (EVERY + 7, EVERY, 1),
    "all as one": (EVERY, torch.zeros_like(EVERY), 1),
    "one": (EVERY[:1], EVERY[:1], 1),
    "two stretches": (torch.cat([EVERY[:9], EVERY[15:]]), torch.arange(18), 2),
    "no order": (EVERY, torch.tensor([5, 3, 1, 4, 0, 2]).repeat(4), 12),
}


def entries(made: tuple[RegularEntries | ScatteredEntries, ...]) -> set[tuple[int, int, float]]:
    return {
        entry
        for b in made
        for entry in zip(
            b.positions().tolist(), b.units().tolist(), b.rates().tolist(), strict=True
        )
    }


@pytest.mark.parametrize("case", CASES)
def test_blocks_hold_the_very_entries(case: str) -> None:
    positions, units, most = CASES[case]
    rates = torch.ones(len(positions), dtype=torch.float64)
    made = blocks(positions, units, rates)
    told = set(zip(positions.tolist(), units.tolist(), rates.tolist(), strict=True))
    assert entries(made) == told
    assert len(made) <= most
    assert sum(len(b.positions()) for b in made) == len(positions)
    assert entries(blocks(positions, units, 2 * rates)) != told


def test_rates_and_order_make_blocks_and_what_has_none_is_kept_by_index() -> None:
    rng = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(24, generator=rng)
    two = blocks(shuffled, shuffled, torch.where(shuffled < 12, 1.0, -1.0).double())
    assert [type(b) for b in two] == [RegularEntries] * 2
    many = torch.randperm(2000, generator=rng)
    (heap,) = blocks(torch.arange(2000), many, torch.ones(2000).double())
    assert isinstance(heap, ScatteredEntries)
    assert torch.equal(heap.units(), many)


@pytest.mark.parametrize("units", [EVERY, torch.randperm(24), EVERY // 5])
def test_a_leg_scales_what_its_entries_say(units: Tensor) -> None:
    tensor = torch.randn(2, 24, 3, dtype=torch.float64)
    rates = torch.where(EVERY % 2 == 0, 1.0, -0.5).double()
    own = leg("w", (2, 24, 3), 1, EVERY, units, rates)
    c = torch.randn(24, dtype=torch.float64)
    factor = (rates * c[units])[None, :, None]
    assert torch.allclose(own.times(tensor, own.along(c)), tensor * factor)
    assert not torch.allclose(own.times(tensor, own.along(c)), tensor * factor.flip(1))


def meeting(case: str) -> Rescale | GeneralLinear:
    """Symmetries whose parts meet in entries, all on w of shape (6, 6, 2)."""
    shape, ones = (6, 6, 2), torch.ones(6, dtype=torch.float64)
    six = torch.arange(6)
    if case == "rates":
        legs = (leg("w", shape, 0, six, six, 2 * ones), leg("w", shape, 1, six, six.flip(0), -ones))
        return Rescale(name="r", dimension=6, legs=legs)
    if case == "shared units":
        legs = (leg("w", shape, 0, six, six // 2, ones), leg("w", shape, 1, six, six % 3, -ones))
        return Rescale(name="r", dimension=3, legs=legs)
    if case == "one axis twice":
        legs = (leg("w", shape, 0, six, six, ones), leg("w", shape, 0, six[:4], six[:4], ones[:4]))
        return Rescale(name="r", dimension=6, legs=legs)
    if case in ("joined axes", "an axis joined with itself"):
        many = torch.arange(12) if case == "joined axes" else torch.arange(36)
        view = (6, 12, 1) if case == "joined axes" else (1, 36, 2)
        units = many % 6
        joined = Leg("w", view[0] // 6, *view, blocks(many, units, -ones[units]))
        return Rescale(name="r", dimension=6, legs=(leg("w", shape, 0, six, six, 2 * ones), joined))
    if case == "blocks":
        mixed = (
            MatrixLeg("w", 0, six.reshape(2, 1, 3), 1),
            MatrixLeg("w", 1, six.reshape(2, 1, 3), -1),
        )
        return GeneralLinear(name="g", dimension=18, legs=mixed)
    if case == "copies of one sign":
        mixed = (
            MatrixLeg("w", 0, six.reshape(1, 2, 3), 1),
            MatrixLeg("w", 1, six.flip(0).reshape(1, 2, 3), 1),
        )
        return GeneralLinear(name="g", dimension=9, legs=mixed)
    mixed = (MatrixLeg("w", 0, six[None, None], 1), MatrixLeg("w", 0, six.roll(2)[None, None], -1))
    return GeneralLinear(name="g", dimension=36, legs=mixed)


@pytest.mark.parametrize(
    "case",
    [
        "rates",
        "shared units",
        "one axis twice",
        "joined axes",
        "an axis joined with itself",
        "blocks",
        "copies of one sign",
    ],
)
def test_lengths_where_parts_meet_are_those_of_the_oracle(case: str) -> None:
    torch.manual_seed(0)
    symmetry, params = meeting(case), {"w": torch.randn(6, 6, 2, dtype=torch.float64)}
    assert not symmetry.form.apart
    slow = oracle.lengths(symmetry, params)
    assert torch.allclose(symmetry.lengths(params), slow, rtol=1e-11)
    alone = symmetry.form.alone(params)
    apart = alone.kind.sizes(alone._moments((0, 0)))
    assert not torch.allclose(apart, slow, rtol=1e-3), "the parts do meet"


def test_lengths_of_rotations_of_both_axes_are_those_of_the_oracle() -> None:
    torch.manual_seed(0)
    every, params = torch.arange(5)[None, None], {"w": torch.randn(5, 5, dtype=torch.float64)}
    form = Gram.of((MatrixLeg("w", 0, every, 1), MatrixLeg("w", 1, every, -1)), 10, ROTATIONS)
    squares = []
    for unit in torch.eye(10, dtype=torch.float64):
        squares.append(form.tangent(params, unit)["w"].square().sum())
    assert torch.allclose(form.alone(params).lengths, torch.stack(squares).sqrt(), rtol=1e-11)
