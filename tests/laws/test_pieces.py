"""However tensors are cut into pieces, whatever their precision: sums are those of float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.charges.change import Change, Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.families.diagonal import Rescale
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms import held
from eqtoolbox.weights.forms.diagonal import Diagonal, leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.laws import oracle
from tests.laws.members import MEMBERS, point

Params = dict[str, Tensor]


def rates(params: Params, apart: float = 0.01) -> Rates:
    return Rates(
        lr={n: 0.1 + apart * i for i, n in enumerate(params)},
        decay={n: apart * (i % 3) for i, n in enumerate(params)},
    )


def stepped(charges: Charges, params: Params, after: Params, gradient: Params) -> Change:
    values = charges.values(charges.read(params))
    return charges.step(values, params, after, gradient, rates(params))


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> ContinuousSymmetry:
    return MEMBERS[request.param]


@pytest.mark.parametrize("entries", [1, 5, 12])
def test_tensors_cut_into_rows_give_the_oracle(
    member: ContinuousSymmetry, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "CACHED", entries)
    params, after, gradient = point(0), point(1), point(2)
    charges = Charges([member], params)
    change = stepped(charges, params, after, gradient)
    drift = oracle.charge(member, after) - oracle.charge(member, params)
    reading = charges.read(params)
    assert torch.allclose(change.drift, drift, atol=1e-10)
    assert torch.allclose(change.slopes, oracle.slopes(member, params, gradient), atol=1e-10)
    assert torch.allclose(charges.values(reading), oracle.charge(member, params), atol=1e-10)
    assert torch.allclose(charges.lengths(reading), oracle.lengths(member, params), atol=1e-10)
    pulls = oracle.pairing(
        member, params, {n: rates(params).lr[n] * g for n, g in gradient.items()}
    )
    assert torch.allclose(-change.symmetry - change.learning_rates, pulls, atol=1e-10)
    if member.charges:
        assert not torch.allclose(change.drift, 1.01 * drift, atol=1e-10)


@pytest.mark.parametrize("apart", [0.0, 0.01])
def test_products_in_the_memory_of_points_spoil_nobody_elses(apart: float) -> None:
    """All kinds in one walk, those that multiply the points first among the members."""
    params, after, gradient = point(0), point(1), point(2)
    every = sorted(MEMBERS.values(), key=lambda m: not isinstance(m.form, Diagonal))
    charges = Charges(every, params)
    change = charges.step(
        charges.values(charges.read(params)), params, after, gradient, rates(params, apart)
    )
    each = [oracle.charge(m, after) - oracle.charge(m, params) for m in charges.members]
    assert torch.allclose(change.drift, torch.cat(each), atol=1e-10)
    slopes = [oracle.slopes(m, params, gradient) for m in charges.members]
    assert torch.allclose(change.slopes, torch.cat(slopes), atol=1e-10)
    size = math.sqrt(sum(float(gradient[n].square().sum()) for n in charges.names))
    assert change.pull == pytest.approx(size, rel=1e-12)


def test_large_tensors_are_cut_where_blocks_end() -> None:
    """Rows in order by five: pieces of no other number; in another order the tensor is whole."""
    for order, most in ((torch.arange(15), 5), (torch.arange(15).flip(0), 15)):
        layout = StackLayout(["w"], {"w": torch.zeros(15, held.CACHED)})
        legs = (MatrixLeg("w", 0, order.reshape(3, 1, 5), 1),)
        form = GeneralLinear(name="g", dimension=75, legs=legs).form
        form.together([form], layout)
        assert [piece.rows for piece in layout.pieces()] == [most] * (15 // most)
    alone = StackLayout(["w"], {"w": torch.zeros(15, held.CACHED)})
    assert [piece.rows for piece in alone.pieces()] == [1] * 15


def wide(rows: int, columns: int) -> tuple[list[ContinuousSymmetry], Params, Params, Params]:
    """One large matrix scaled along both axes, in float32, a small step and a gradient."""
    rng = torch.Generator().manual_seed(0)
    w, step, g = (torch.randn(rows, columns, generator=rng) for _ in range(3))
    every, other = torch.arange(rows), torch.arange(columns)
    one = leg("w", (rows, columns), 0, every, every, torch.ones(rows).double())
    two = leg("w", (rows, columns), 1, other, other, torch.ones(columns).double())
    members: list[ContinuousSymmetry] = [
        Rescale(name="rows", dimension=rows, legs=(one,)),
        Rescale(name="columns", dimension=columns, legs=(two,)),
    ]
    return members, {"w": w}, {"w": w + 1e-3 * step}, {"w": g}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_any_precision_are_those_of_float64(dtype: torch.dtype) -> None:
    """To 1e-12 of what is added, where sums in float32 are off by more than 1e-9 of it."""
    members, *points = wide(700, 500)
    params, after, gradient = ({n: t.to(dtype) for n, t in p.items()} for p in points)
    charges = Charges(members, params)
    change = stepped(charges, params, after, gradient)
    w, d, g = (p["w"].double() for p in (params, after, gradient))
    d = d - w
    for axis, where in ((1, slice(0, 700)), (0, slice(700, 1200))):
        exact, size = (w * g).sum(axis), (w * g).abs().sum(axis)
        assert float(((change.slopes[where] - exact).abs() / size).max()) < 1e-12
        drift, reach = (w * d + d * d / 2).sum(axis), (w * d).abs().sum(axis)
        assert float(((change.drift[where] - drift).abs() / reach).max()) < 1e-12
        low = (params["w"].float() * gradient["w"].float()).sum(axis).double()
        assert dtype == torch.bfloat16 or float(((low - exact).abs() / size).max()) > 1e-9
    assert change.pull == pytest.approx(math.sqrt(float(g.square().sum())), rel=1e-12)


def test_a_step_brings_one_copy_to_the_host_and_asks_for_no_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the meta device whatever else would wait for a device raises."""
    every = list(MEMBERS.values())
    here = {n: p.to("meta") for n, p in point(0).items()}
    charges, copies = Charges(every, here), list[torch.Size]()

    def cpu(tensor: Tensor, *given: Any) -> Tensor:
        copies.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    beside = torch.zeros(3, device="meta")
    change = charges.step(torch.zeros(charges.count), here, here, here, rates(here), beside)
    assert len(copies) == 1
    assert len(change.beside) == 3
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        float(beside.sum())


def test_equal_entries_in_blocks_of_another_kind_are_another_part() -> None:
    """Three heads of a matrix, and three copies of one head of another of the same shape."""
    rng = torch.Generator().manual_seed(0)
    params = {n: torch.randn(6, 4, generator=rng).double() for n in ("q", "p")}
    params |= {"k": torch.randn(5, 6, generator=rng).double()}
    params |= {"l": torch.randn(5, 2, generator=rng).double()}
    rows = torch.arange(6)
    alone = (
        MatrixLeg("q", 0, rows.reshape(3, 1, 2), 1),
        MatrixLeg("k", 1, rows.reshape(3, 1, 2), -1),
    )
    shared = (
        MatrixLeg("p", 0, rows.reshape(1, 3, 2), 1),
        MatrixLeg("l", 1, torch.arange(2).reshape(1, 1, 2), -1),
    )
    members = [
        GeneralLinear(name="heads", dimension=12, legs=alone),
        GeneralLinear(name="one", dimension=4, legs=shared),
    ]
    charges = Charges(members, params)
    together = charges.values(charges.read(params))
    assert torch.allclose(together, torch.cat([m.charge(params) for m in members]), rtol=1e-12)
