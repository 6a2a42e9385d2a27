"""All charges evaluated together are those of the symmetries one by one, whatever the step."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.families.compensation import Compensation
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.laws import oracle
from tests.laws.test_family_laws import CASES, Params, case


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest) -> tuple[Charges, Params]:
    run, params = case(*CASES[request.param])
    every = find_symmetries(lambda p: run(p)[1], params, run=run)
    kept = [s for s in every if isinstance(s, ContinuousSymmetry) and s.status != "broken"]
    return Charges(sorted(kept, key=lambda s: s.family), params), params


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def step(charges: Charges, params: Params) -> tuple[object, Params, Params, Rates]:
    torch.manual_seed(3)
    after = {n: p + 0.1 * torch.randn_like(p) for n, p in params.items()}
    gradient = {n: torch.randn_like(p) for n, p in params.items()}
    rates = Rates(
        lr={n: 0.1 + 0.01 * i for i, n in enumerate(params)},
        decay={n: 0.01 * (i % 3) for i, n in enumerate(params)},
    )
    values = charges.values(charges.read(params))
    return charges.step(values, params, after, gradient, rates), after, gradient, rates


def test_charges_together_equal_charges_one_by_one(found: tuple[Charges, Params]) -> None:
    charges, params = found
    moments = charges.read(params)
    assert near(charges.values(moments), torch.cat([m.charge(params) for m in charges.members]))
    lengths = []
    for m in charges.members:
        for unit in torch.eye(m.dimension, dtype=torch.float64):
            lengths.append(sum(k.square().sum() for k in m.tangent(params, unit).values()) ** 0.5)
    assert near(charges.lengths(moments), torch.stack(lengths))


def test_the_step_of_all_charges_equals_the_steps_one_by_one(found: tuple) -> None:
    charges, params = found
    change, after, gradient, rates = step(charges, params)
    drift = [m.charge(after) - m.charge(params) for m in charges.members]
    assert near(change.drift, torch.cat(drift))
    update = {n: after[n] - p for n, p in params.items()}
    assert near(change.finite_step, torch.cat([m.finite_step(update) for m in charges.members]))
    shrink = {n: -rates.lr[n] * rates.decay[n] * p for n, p in params.items()}
    decays = [m.pairing(params, shrink) for m in charges.members]
    assert near(change.decay, torch.cat(decays))
    pulls = [
        -max(rates.lr[n] for n in m.names) * m.pairing(params, gradient) for m in charges.members
    ]
    assert near(change.symmetry, torch.cat(pulls))
    assert near(sum(change.causes.values()), change.drift)


def test_slopes_are_derivatives_of_the_pairing_along_every_generator(found: tuple) -> None:
    charges, params = found
    change, _, gradient, _ = step(charges, params)
    expected = [oracle.slopes(m, params, gradient) for m in charges.members]
    assert near(change.slopes, torch.cat(expected))
    assert near(charges.slopes(params, gradient), torch.cat(expected))


def test_families_cover_all_charges_and_units_are_named(found: tuple[Charges, Params]) -> None:
    charges, _ = found
    ends = [(w.start, w.stop) for w in charges.families.values()]
    assert ends[0][0] == 0
    assert ends[-1][1] == charges.count
    assert all(a[1] == b[0] for a, b in pairwise(ends))
    last = charges.families[charges.members[-1].family].stop - 1
    assert charges.unit(last).startswith(next(m.name for m in charges.members[::-1] if m.charges))
    with pytest.raises(IndexError, match="more charges"):
        charges.unit(charges.count)


def test_scattered_rows_and_grouped_copies_are_gathered() -> None:
    """Positions that are no stretch of an axis, and several copies of a block (grouped queries)."""
    torch.manual_seed(0)
    params = {"q": torch.randn(12, 5).double(), "k": torch.randn(5, 6).double()}
    queries = torch.tensor([[[0, 2, 4], [1, 3, 5]], [[6, 8, 10], [7, 9, 11]]])
    keys = torch.tensor([[[0, 1, 2]], [[3, 4, 5]]])
    legs = (MatrixLeg("q", 0, queries, 1), MatrixLeg("k", 1, keys, -1))
    symmetry = GeneralLinear(name="grouped", dimension=18, legs=legs)
    charges = Charges([symmetry], params)
    assert near(charges.values(charges.read(params)), symmetry.charge(params))
    change, _, gradient, _ = step(charges, params)
    assert near(change.slopes, oracle.slopes(symmetry, params, gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_steps_are_exact_to_float32(dtype: torch.dtype) -> None:
    run, params = case(*CASES["deep linear"])
    every = find_symmetries(lambda p: run(p)[1], params, run=run)
    kept = [s for s in every if isinstance(s, ContinuousSymmetry) and s.charges]
    low = {n: p.to(dtype) for n, p in params.items()}
    after = {n: (p + 0.01 * torch.randn_like(p)).to(dtype) for n, p in low.items()}
    charges = Charges(kept, low)
    still = dict.fromkeys(low, 0.0)
    values = charges.values(charges.read(low))
    change = charges.step(values, low, after, None, Rates(lr=still, decay=still))
    wide = lambda tensors: {n: p.double() for n, p in tensors.items()}
    exact = torch.cat([m.charge(wide(after)) - m.charge(wide(low)) for m in charges.members])
    assert torch.allclose(change.drift, exact, atol=1e-7 * float(values.abs().max()))
    assert near(
        charges.values(charges.read(low)), torch.cat([m.charge(wide(low)) for m in charges.members])
    )


@pytest.mark.parametrize("centred", [False, True])
def test_lengths_of_a_compensation_are_those_of_its_tangents(centred: bool) -> None:
    torch.manual_seed(0)
    params = {"a": torch.randn(5, 4).double(), "b": torch.randn(4).double()}
    member = Compensation(
        name="a", dimension=3, first="a", second="b", entries=torch.arange(4 if centred else 3),
        centred=centred,
    )  # fmt: skip
    tangents = [member.tangent(params, unit) for unit in torch.eye(3, dtype=torch.float64)]
    squares = [sum(k.square().sum() for k in tangent.values()) for tangent in tangents]
    assert near(member.lengths(params).square(), torch.stack(squares))
