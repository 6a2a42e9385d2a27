"""The canonical point of an orbit, for every family of symmetries that has one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.orbit.canonical import STEPS, canonical
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.laws.test_family_laws import CASES, EXACT, case

Params = dict[str, Tensor]
Found = tuple[Callable, Params, list[ContinuousSymmetry]]


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest) -> Found:
    run, params = case(*CASES[request.param])
    every = find_symmetries(lambda p: run(p)[1], params, run=run)
    exact = [
        s
        for s in every
        if isinstance(s, ContinuousSymmetry) and not s.equivariant and s.status == "verified"
    ]
    return run, params, exact


def moved(params: Params, symmetries: list[ContinuousSymmetry], size: float) -> Params:
    generator = torch.Generator().manual_seed(0)
    there = dict(params)
    for s in symmetries:
        c = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
        there.update(s.transform(there, size * c))
    return there


def invariants(params: Params) -> Tensor:
    """Singular values of every parameter: what orthogonal motions leave."""
    flat = [p.reshape(p.shape[0], -1) if p.dim() > 1 else p[:, None] for p in params.values()]
    return torch.cat([torch.linalg.svdvals(p) for p in flat])


def test_every_exact_family_has_a_canonical_point() -> None:
    steps = {}
    for make, tokens in CASES.values():
        run, params = case(make, tokens)
        for s in find_symmetries(lambda p, run=run: run(p)[1], params):
            if isinstance(s, ContinuousSymmetry) and s.status == "verified":
                steps[s.family] = s.form.balance
    assert steps.keys() >= EXACT
    assert set(steps.values()) == STEPS.keys()


def test_the_canonical_point_computes_the_same(found: Found) -> None:
    run, params, symmetries = found
    for start in (params, moved(params, symmetries, 0.5)):
        there = canonical(symmetries, start).params
        assert torch.allclose(run(there)[1], run(params)[1], rtol=1e-11)


def test_all_points_of_an_orbit_have_the_same_canonical_point_and_are_not_it(
    found: Found,
) -> None:
    _, params, symmetries = found
    far = moved(params, symmetries, 0.5)
    one, two = canonical(symmetries, params), canonical(symmetries, far)
    assert max(one.imbalance, two.imbalance) < 1e-12
    assert torch.allclose(invariants(one.params), invariants(two.params), atol=1e-9)
    assert not torch.allclose(invariants(params), invariants(far), atol=1e-2)
    assert not torch.allclose(invariants(params), invariants(one.params), atol=1e-2)


def test_the_canonical_point_is_its_own(found: Found) -> None:
    _, params, symmetries = found
    once = canonical(symmetries, params).params
    again = canonical(symmetries, once)
    assert again.rounds == 1
    assert torch.allclose(invariants(once), invariants(again.params), atol=1e-12)


def test_another_point_off_the_orbit_has_another(found: Found) -> None:
    """Negative control: the invariants do tell networks apart."""
    _, params, symmetries = found
    other = {n: p + 0.1 * torch.randn_like(p) for n, p in params.items()}
    one, two = canonical(symmetries, params).params, canonical(symmetries, other).params
    assert not torch.allclose(invariants(one), invariants(two), atol=1e-2)
