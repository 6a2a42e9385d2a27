"""What one evaluator makes of a form is what the oracle finds generator by generator."""

import importlib
import inspect
import pickle
import pkgutil
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights import families
from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.forms.diagonal import Diagonal, whole
from eqtoolbox.weights.forms.form import Form
from eqtoolbox.weights.forms.gram import Gram
from eqtoolbox.weights.forms.linear import LinearForm
from eqtoolbox.weights.forms.through import Through
from eqtoolbox.weights.orbit.canonical import STEPS, canonical
from eqtoolbox.weights.orbit.tangent_space import TangentSpace
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.verification import verified
from tests.laws import oracle
from tests.laws.members import MEMBERS, point


@dataclass(frozen=True, kw_only=True)
class Toy(ContinuousSymmetry):
    """A family of one file: two matrices at rates 1 and -2."""

    family: ClassVar[str] = "toy"

    @cached_property
    def form(self) -> Diagonal:
        return Diagonal.of((whole("w", 1.0), whole("e", -2.0)), 1)


EVERY = {**MEMBERS, "toy": Toy(name="toy", dimension=1)}  # its one line


@pytest.fixture(params=EVERY)
def member(request: pytest.FixtureRequest) -> ContinuousSymmetry:
    return EVERY[request.param]


def evaluated(form: Form) -> dict[str, Tensor]:
    """All that the evaluator says of a form, at a point and along a direction."""
    here, pair = form.alone(point(0)), form.alone(point(0), point(1))
    finite = form.alone(point(1)).charge
    return {
        "slopes": pair.slopes,
        "lengths": here.lengths,
        "pairing": pair.pairing,
        "charge": here.charge,
        "scale": here.scale,
        "finite step": finite if form.quadratic else torch.zeros_like(finite),
    }


def expected(member: ContinuousSymmetry) -> dict[str, Tensor]:
    return {
        "slopes": oracle.slopes(member, point(0), point(1)),
        "lengths": oracle.lengths(member, point(0)),
        "pairing": oracle.pairing(member, point(0), point(1)),
        "charge": oracle.charge(member, point(0)),
        "scale": oracle.scale(member, point(0)),
        "finite step": oracle.finite_step(member, point(0), point(1)),
    }


def apart(form: Form, member: ContinuousSymmetry) -> dict[str, float]:
    """Largest difference of every quantity."""
    found, right = evaluated(form), expected(member)
    assert all(found[q].shape == right[q].shape for q in found)
    return {q: float((found[q] - right[q]).abs().max()) for q in found if found[q].numel()}


def spoilt(form: Form) -> Form:
    """The same form with one number of its data changed."""
    if isinstance(form, Diagonal):
        first, *rest = form.legs
        return replace(
            form,
            legs=(
                replace(first, blocks=tuple(replace(b, rate=2 * b.rate) for b in first.blocks)),
                *rest,
            ),
        )
    if isinstance(form, Gram):
        first, *rest = form.legs
        return replace(form, legs=(replace(first, positions=first.positions.roll(1, 2)), *rest))
    if isinstance(form, LinearForm):
        one, *others = form.terms
        return replace(form, terms=(replace(one, rates=2 * one.rates), *others))
    assert isinstance(form, Through)
    return replace(form, readers=(replace(form.readers[0], factor=3.0), *form.readers[1:]))


def test_every_family_has_a_member_here() -> None:
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        importlib.import_module(module.name)
    todo, known = [ContinuousSymmetry], set()
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("eqtoolbox.") and not inspect.isabstract(kind):
            known |= {kind.family} if hasattr(kind, "family") else set()
    assert known == {m.family for m in MEMBERS.values()}


def test_every_quantity_is_that_of_the_oracle(member: ContinuousSymmetry) -> None:
    meeting = not member.form.apart  # legs that meet make the bound of a charge their sum
    for quantity, difference in apart(member.form, member).items():
        if quantity == "scale" and meeting:
            bound, sizes = member.form.alone(point(0)).scale, point(0)
            assert (oracle.charge(member, point(0)).abs() <= bound * (1 + 1e-12)).all()
            assert (bound <= 2 * sum(sizes[n].square().sum() for n in member.names)).all()
        else:
            assert difference < 1e-10, quantity


def test_a_form_that_is_spoilt_is_told_apart(member: ContinuousSymmetry) -> None:
    assert max(apart(spoilt(member.form), member).values()) > 1e-2


def test_a_symmetry_that_was_evaluated_can_be_pickled(member: ContinuousSymmetry) -> None:
    before = evaluated(member.form)
    after = evaluated(pickle.loads(pickle.dumps(member)).form)
    assert all(torch.equal(before[q], after[q]) for q in before)


def test_tangents_and_pullbacks_are_derivatives_of_the_group(member: ContinuousSymmetry) -> None:
    params, cotangent = point(0), point(1)
    c = torch.randn(member.dimension, generator=torch.Generator().manual_seed(2)).double()
    slope = sum(x * k for x, k in zip(c, _stacked(member), strict=True))
    tangent = {**{n: torch.zeros_like(p) for n, p in params.items()}, **member.tangent(params, c)}
    assert torch.allclose(torch.cat([t.flatten() for t in tangent.values()]), slope, atol=1e-10)
    _, pull = torch.func.vjp(lambda p: {**p, **member.tangent(p, c)}, params)
    moved = set(member.names)
    (pulled,) = pull({n: g if n in moved else torch.zeros_like(g) for n, g in cotangent.items()})
    still = {n: cotangent[n] for n in moved - member.tangent(params, c).keys()}
    own = member.pullback(params, c, cotangent)
    for name in moved - still.keys():
        assert torch.allclose(own[name], pulled[name], atol=1e-10), name


def _stacked(member: ContinuousSymmetry) -> list[Tensor]:
    found = oracle.generators(member, point(0))
    return [torch.cat([k.flatten() for k in one.values()]) for one in found]


def test_all_together_are_each_by_itself() -> None:
    """And several of a kind, in whatever order they are given."""
    params, after, gradient = point(0), point(1), point(2)
    several = [*EVERY.values(), *list(EVERY.values())[::-1]]
    charges = Charges(several, params)
    reading = charges.read(params)
    lr = {n: 0.1 + 0.01 * i for i, n in enumerate(params)}
    rates = Rates(lr=lr, decay={n: 0.01 * (i % 3) for i, n in enumerate(params)})
    change = charges.step(charges.values(reading), params, after, gradient, rates)
    update = {n: after[n] - p for n, p in params.items()}
    shrink = {n: -rates.lr[n] * rates.decay[n] * p for n, p in params.items()}
    pairs = {
        "values": (charges.values(reading), lambda m: m.charge(params)),
        "scales": (charges.scales(reading), lambda m: m.charge_scale(params)),
        "lengths": (charges.lengths(reading), lambda m: m.lengths(params)),
        "slopes": (change.slopes, lambda m: m.slopes(params, gradient)),
        "drift": (change.drift, lambda m: m.charge(after) - m.charge(params)),
        "finite step": (change.finite_step, lambda m: m.finite_step(update)),
        "decay": (change.decay, lambda m: m.pairing(params, shrink)),
    }
    for what, (found, alone) in pairs.items():
        each = torch.cat([alone(m) for m in charges.members])
        assert torch.allclose(found, each, atol=1e-10), what
    wrong = torch.cat([m.charge(after) for m in charges.members])
    assert not torch.allclose(charges.values(reading), wrong, atol=1e-2)


def test_what_is_off_the_orbit_is_orthogonal_to_every_generator(
    member: ContinuousSymmetry,
) -> None:
    v = point(1)
    off = TangentSpace([member], point(0)).complement(v)
    for k in oracle.generators(member, point(0)):
        assert abs(float(oracle.inner(k, off))) < 1e-9
    along = {n: x - off[n] for n, x in v.items()}
    assert float(oracle.inner(along, along)) > 1e-3


def test_the_canonical_point_has_no_charges_left_or_there_is_a_reason(
    member: ContinuousSymmetry,
) -> None:
    params = point(0)
    if member.equivariant or member.form.balance not in STEPS:
        with pytest.raises(ValueError, match=f"{member.family} .* canonical point"):
            canonical([member], params)
        return
    there = canonical([member], params)
    charge = member.charge(there.params)
    assert there.imbalance < 1e-12
    if member.form.balance == "norm one":
        assert torch.allclose(charge, torch.full_like(charge, 0.5))
    else:
        assert bool((charge.abs() <= 1e-10 * member.charge_scale(params) + 1e-12).all())
    if member.charges:
        assert not torch.allclose(charge, member.charge(params), atol=1e-2)


def test_a_symmetry_of_a_loss_is_verified_and_one_of_another_is_broken() -> None:
    """The toy family at a loss that only sees what it leaves: |w|^2 |e|."""
    own = {n: point(0)[n].float().double() for n in ("w", "e")}
    loss = lambda p: p["w"].square().sum() * p["e"].square().sum().sqrt()
    other = lambda p: p["w"].square().sum() * p["e"].square().sum()
    rng = torch.Generator().manual_seed(0)
    assert verified(EVERY["toy"], loss, own, rng).status == "verified"
    assert verified(EVERY["toy"], other, own, rng).status == "broken"
