"""Charges from shards: those of the whole tensors, for every family, however they are cut."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.families.diagonal import Rescale
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.diagonal import Diagonal, leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.here import flow_here
from eqtoolbox.weights.forms.linear import LinearForm
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.world.shards import ALONE, Piece, Shards, regroup
from tests.distributed.simulated import (
    Axes,
    Params,
    Simulated,
    first_axis,
    held,
    last_axis,
    layouts,
    mixed_axes,
)
from tests.laws.members import MEMBERS, SHAPES, point

Cuts = list[list[dict[str, Piece]]]
JOINED = leg(  # a unit an index of the first two axes, together
    "t", (18, 2), 0, torch.arange(18), torch.arange(18), torch.ones(18).double()
)
EVERY = {**MEMBERS, "joined axes": Rescale(name="j", dimension=18, legs=(JOINED,))}
AXES = {"first": first_axis, "last": last_axis, "mixed": mixed_axes}


def everything(
    members: Sequence[ContinuousSymmetry], points: Sequence[Params], shards: Shards
) -> dict[str, Tensor]:
    """All that is known of charges at these points: before, after and gradient."""
    before, after, gradient = points
    charges = Charges(members, before, shards=shards)
    reading = charges.read(before)
    values = charges.values(reading)
    names = charges.names
    rates = Rates(
        lr={n: 0.1 * (k + 1) for k, n in enumerate(names)},
        decay={n: 0.01 * k for k, n in enumerate(names)},
    )
    change = charges.step(values, before, after, gradient, rates, torch.ones(2).double())
    return {
        "values": values,
        "scales": charges.scales(reading),
        "lengths": charges.lengths(reading),
        "slopes": charges.slopes(before, gradient),
        "law": change.slopes,
        "drift": change.drift,
        "pull": torch.tensor([change.pull]),
        "beside": change.beside / shards.ranks,
        **change.causes,
    }


def apart(
    members: Sequence[ContinuousSymmetry], points: Sequence[Params], ranks: int, axes: Axes
) -> tuple[float, Simulated]:
    """Largest difference of any number between the shards and the whole, and what was told."""
    expected = everything(members, points, ALONE)
    cut, world = layouts(points[0], ranks, axes), Simulated(ranks=ranks)

    def part(shards: Shards) -> dict[str, Tensor]:
        own = [held(p, cut[shards.rank]) for p in points]
        return everything(members, own, shards)

    found = world.run(part, cut)
    worst = 0.0
    for name, whole in expected.items():
        size = float(whole.abs().max()) if len(whole) else 0.0
        for one in found:
            assert torch.equal(one[name], found[0][name]), f"{name} differs between ranks"
            gap = float((one[name] - whole).abs().max()) if len(whole) else 0.0
            worst = max(worst, gap / max(size, 1e-3))
    return worst, world


@pytest.mark.parametrize("cut", AXES)
@pytest.mark.parametrize("family", EVERY)
def test_charges_and_their_budgets_from_shards_are_those_of_the_whole(
    family: str, cut: str
) -> None:
    """Of 1 to 5 ranks: heads are cut, last shards are shorter, and some have nothing."""
    for ranks in (1, 2, 3, 4, 5):
        worst, _ = apart([EVERY[family]], [point(k) for k in range(3)], ranks, AXES[cut])
        assert worst < 1e-12, ranks


@pytest.mark.parametrize("cut", AXES)
def test_all_families_together_are_those_of_the_whole(cut: str) -> None:
    worst, _ = apart([*EVERY.values()], [point(k) for k in range(3)], 3, AXES[cut])
    assert worst < 1e-12


def test_a_step_of_all_charges_takes_one_sum() -> None:
    """One more of the vectors, where a law reads biases as a whole; none of a tensor's size."""
    shifts = {family for family, m in EVERY.items() if "bias shift" in family}
    points, rates = [point(k) for k in range(3)], Rates(lr=dict.fromkeys(SHAPES, 0.1), decay={})
    rates = replace(rates, decay=dict.fromkeys(SHAPES, 0.0))
    for without, sums in ((shifts, 1), (set(), 4)):
        members = [m for family, m in EVERY.items() if family not in without]
        cut, world = layouts(points[0], 3), Simulated(ranks=3)

        def step(shards: Shards, members: Sequence[ContinuousSymmetry] = members) -> None:
            before, after, gradient = (held(p, shards.layout) for p in points)
            charges = Charges(members, before, shards=shards)
            values = torch.zeros(charges.count).double()
            charges.step(values, before, after, gradient, rates)

        world.run(step, cut)
        assert len(world.totals) == sums


def test_slabs_in_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are themselves cut into slabs, of rows and of columns."""
    monkeypatch.setattr("eqtoolbox.weights.forms.held.CACHED", 8)
    for ranks in (1, 2, 3):
        points = [point(k) for k in range(3)]
        assert apart([*EVERY.values()], points, ranks, first_axis)[0] < 1e-12


def test_a_sum_that_is_not_made_and_one_that_counts_twice_are_seen() -> None:
    """Twins: each rank by itself, and tensors that all hold whole added up by all of them."""
    points, every = [point(k) for k in range(3)], [MEMBERS["rescale"]]
    expected = everything(every, points, ALONE)["values"]
    cut = layouts(points[0], 2)

    def alone(shards: Shards) -> Tensor:
        own = [held(p, cut[shards.rank]) for p in points]
        return everything(every, own, replace(shards, total=ALONE.total))["values"]

    def twice(shards: Shards) -> Tensor:
        return everything(every, points, replace(shards, layout={}, rank=0))["values"]

    for wrong in (alone, twice):
        assert float((Simulated(ranks=2).run(wrong, cut)[0] - expected).abs().max()) > 0.1


def test_heads_that_are_whole_on_every_rank_need_no_exchange() -> None:
    """Four blocks of three rows: two ranks have two each; three ranks cut the second of them."""
    legs = (MatrixLeg("q", 0, torch.arange(12).reshape(4, 1, 3), 1),)
    heads = GeneralLinear(name="g", dimension=36, legs=legs)
    points = [point(k) for k in range(3)]
    for ranks, exchanged in ((2, False), (4, False), (5, False), (8, True)):
        worst, world = apart([heads], points, ranks, first_axis)
        assert worst < 1e-12
        assert bool(world.exchanged) == exchanged, ranks


def test_an_exchange_holds_no_more_than_a_shard() -> None:
    """Of every exchange, each rank gets at most its share of the tensor, rounded up."""
    points = [point(k) for k in range(3)]
    _, world = apart([MEMBERS["grouped queries"]], points, 3, first_axis)
    assert world.exchanged and max(world.exchanged) <= 12 * 2  # of q, 12 x 5: ceil(5 / 3) columns


@pytest.mark.parametrize("shape", [(7, 5), (4, 9, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_regrouping_is_cutting_the_other_way(shape: tuple[int, ...], ranks: int) -> None:
    whole = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    for one, other in ((0, 1), (1, 0), (0, len(shape) - 1)):
        cuts = [layouts(whole, ranks, lambda n, t, d=d: d) for d in (one, other)]

        def part(shards: Shards, cuts: Cuts = cuts, other: int = other) -> tuple[Tensor, Piece]:
            own = cuts[0][shards.rank]
            return regroup(held(whole, own)["w"], own["w"], other, shards)

        for rank, (made, piece) in enumerate(Simulated(ranks=ranks).run(part, cuts[0])):
            assert piece == cuts[1][rank]["w"]
            assert torch.equal(made, held(whole, cuts[1][rank])["w"])


@pytest.mark.parametrize("cut", AXES)
@pytest.mark.parametrize("family", EVERY)
def test_what_acts_within_stretches_is_the_whole_motion_cut(family: str, cut: str) -> None:
    """Scales and shifts; what mixes rows has no such motion, and says so on every rank."""
    form, params = EVERY[family].form, point(0)
    c = torch.randn(form.dimension, generator=torch.Generator().manual_seed(1)).double()
    moved = {**params, **form.flow(c)(params)}
    for ranks in (1, 2, 3, 5):
        found = [flow_here(form, c, own) for own in layouts(params, ranks, AXES[cut])]
        assert len({flow is None for flow in found}) == 1
        assert isinstance(form, (Diagonal, LinearForm)) or found[0] is None
        assert cut != "first" or not isinstance(form, (Diagonal, LinearForm)) or found[0]
        for flow, own in zip(found, layouts(params, ranks, AXES[cut]), strict=True):
            here = flow(held(params, own)) if flow is not None else {}
            for name, made in here.items():
                assert torch.equal(made, held(moved, own)[name]), (name, ranks)


def test_random_elements_of_large_groups_are_those_of_the_whole() -> None:
    """The same elements on every rank, and all charges beside them where these are read."""
    rng = torch.Generator().manual_seed(0)
    whole = {
        "a": torch.randn(40, 7, generator=rng).double(),
        "b": torch.randn(6, 40, generator=rng).double(),
    }
    blocks = torch.arange(40).reshape(2, 1, 20)
    legs = (MatrixLeg("a", 0, blocks, 1), MatrixLeg("b", 1, blocks, -1))
    large = GeneralLinear(name="g", dimension=800, legs=legs)

    def read(shards: Shards) -> list[Tensor]:
        own = held(whole, shards.layout) if shards.layout else whole
        charges = Charges([large], own, sketch=True, shards=shards)
        reading = charges.read(own)
        every = charges.sketched(reading)["general_linear"]
        return [
            charges.values(reading),
            charges.scales(reading),
            charges.lengths(reading),
            charges.slopes(own, own),
            *every,
        ]

    for ranks in (1, 2, 3):
        for found in Simulated(ranks=ranks).run(read, layouts(whole, ranks)):
            for one, other in zip(found, read(ALONE), strict=True):
                assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
