"""Orbit-free sharpness on networks moved far along their orbits, and against dense projections."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.orbit.canonical import canonical
from eqtoolbox.weights.orbit.tangent_space import TangentSpace
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.conftest import blobs, mlp
from tests.symmetry.architectures import Block

Params = dict[str, Tensor]
FAR = 3.0  # exponents of the motion: factors e^3 and e^-3


class Attention(nn.Module):
    """One attention layer of two heads with its keys, queries, values and output, and a head."""

    def __init__(self) -> None:
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.q, self.k, self.v, self.o = (linear(6, 6) for _ in range(4))
        self.h = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = lambda y: y.view(len(x), -1, 2, 3).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        return self.h(torch.tanh(self.o(y.transpose(1, 2).reshape(x.shape)))[:, 0])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=1e-14), nn.ReLU(),
        Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "relu": (lambda: mlp(6, 8, 7, 3), (32, 6), {"rescale", "translation"}),
    "batch norm": (convolutional, (16, 2, 5, 5), {"scale", "gain_rescale", "translation"}),
    "attention": (Attention, (16, 2, 6), {"general_linear", "translation"}),
}


@cache
def case(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[ContinuousSymmetry, ...]]:
    make, shape, families = CASES[name]
    torch.manual_seed(0)
    model = make().double()
    batch = (torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, shape[:1]))
    found = tuple(
        s
        for s in discover(model, batch)
        if isinstance(s, ContinuousSymmetry) and not s.equivariant and s.status == "verified"
    )
    assert {s.family for s in found} == families
    return model, batch, found


def parameters(model: nn.Module) -> Params:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def moved(params: Params, symmetries: tuple[ContinuousSymmetry, ...], seed: int) -> Params:
    """Far along random elements of every group: factors e^3 and e^-3 at the ends of each."""
    generator = torch.Generator().manual_seed(seed)
    there = dict(params)
    for s in symmetries:
        c = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
        if s.family == "general_linear":
            a = c.reshape(-1, s.size, s.size)  # type: ignore[attr-defined]
            values, vectors = torch.linalg.eigh(a + a.mT)
            ends = FAR * (1 - 2 * (values == values.amin(-1, keepdim=True)).double())
            c = (vectors @ torch.diag_embed(ends) @ vectors.mT).flatten()
        elif s.family != "translation":
            c = FAR * c.sign()
        there.update(s.transform(there, c))
    return there


@cache
def measured_at_start(name: str) -> dict[str, Record]:
    return measured(name, parameters(case(name)[0]))


def measured(name: str, params: Params) -> dict[str, Record]:
    model, batch, _ = case(name)
    model.load_state_dict(params, strict=False)
    model.zero_grad()
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.0), MemorySink()
    probe = Curvature(k=1, smallest=False, tol=1e-7, max_matvecs=400, orbit_free=True)
    with eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        loss(model, batch).backward()
        optimizer.step()
    return {r.name.removeprefix("curvature/"): r for r in sink.records}


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sharpness_changes_by_orders_along_the_orbit_and_the_orbit_free_one_not_at_all(
    name: str,
) -> None:
    model, batch, symmetries = case(name)
    start = parameters(model)
    loss = lambda p: F.cross_entropy(functional_call(model, p, (batch[0],)), batch[1])
    here, there = measured_at_start(name), measured(name, moved(start, symmetries, seed=1))
    model.load_state_dict(start, strict=False)
    far = moved(start, symmetries, seed=1)
    assert float(loss(far)) == pytest.approx(float(loss(start)), rel=1e-9), "the same function"
    ratio = there["sharpness"].value / here["sharpness"].value
    assert abs(math.log10(ratio)) > 1.5
    assert here["orbit_free_sharpness"].status == there["orbit_free_sharpness"].status == "ok"
    assert there["orbit_free_sharpness"].value == pytest.approx(
        here["orbit_free_sharpness"].value, rel=1e-8
    )


def dense(name: str, params: Params) -> tuple[Tensor, Tensor]:
    """Hessian and an orthonormal basis of the orbit's tangents, both dense, by torch.func."""
    model, (x, y), symmetries = case(name)
    sizes = [p.numel() for p in params.values()]

    def unpack(vector: Tensor) -> Params:
        parts = torch.split(vector, sizes)
        return {n: v.reshape(p.shape) for v, (n, p) in zip(parts, params.items(), strict=True)}

    def loss(vector: Tensor) -> Tensor:
        state = {n: b.clone() for n, b in model.named_buffers()}
        return F.cross_entropy(functional_call(model, {**unpack(vector), **state}, (x,)), y)

    flat = torch.cat([p.flatten() for p in params.values()])
    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(loss, flat)
    columns = []
    for s in symmetries:
        orbit = lambda c, s=s: s.transform(params, c)
        slopes = torch.func.jacrev(orbit)(torch.zeros(s.dimension, dtype=torch.float64))
        whole = {n: p.new_zeros(*p.shape, s.dimension) for n, p in params.items()}
        whole.update(slopes)
        columns.append(torch.cat([w.reshape(-1, s.dimension) for w in whole.values()]))
    u, values, _ = torch.linalg.svd(torch.cat(columns, dim=1), full_matrices=False)
    return matrix, u[:, values > 1e-9 * values[0]]


def top_off(matrix: Tensor, basis: Tensor) -> float:
    off = torch.eye(len(matrix), dtype=torch.float64) - basis @ basis.mT
    return float(torch.linalg.eigvalsh(off @ matrix @ off)[-1])


def test_it_is_the_top_eigenvalue_of_the_dense_projected_hessian_at_the_canonical_point(
    name: str,
) -> None:
    model, _, symmetries = case(name)
    start = parameters(model)
    record = measured_at_start(name)["orbit_free_sharpness"]
    balanced = canonical(symmetries, start).params
    assert record.value == pytest.approx(top_off(*dense(name, balanced)), rel=1e-8)


def test_projecting_off_the_orbit_without_the_canonical_point_is_not_invariant(name: str) -> None:
    """Negative control: H(T theta) = T^-T H T^-1 has other eigenvalues across the orbit too."""
    model, _, symmetries = case(name)
    start = parameters(model)
    far = moved(start, symmetries, seed=1)
    ratio = top_off(*dense(name, far)) / top_off(*dense(name, start))
    assert abs(math.log10(ratio)) > 1


def test_the_canonical_point_is_the_same_network_with_vanishing_charges(name: str) -> None:
    model, batch, symmetries = case(name)
    start = parameters(model)
    point = canonical(symmetries, moved(start, symmetries, seed=2))
    loss = lambda p: F.cross_entropy(functional_call(model, p, (batch[0],)), batch[1])
    assert float(loss(point.params)) == pytest.approx(float(loss(start)), rel=1e-9)
    for s in symmetries:
        charge = s.charge(point.params)
        if s.family == "scale":
            assert torch.allclose(2 * charge, torch.ones_like(charge), atol=1e-12)
        else:
            scale = float(s.charge_scale(point.params).max())
            assert float(charge.abs().max()) < 1e-12 * max(scale, 1.0)


def test_the_canonical_point_is_the_shortest_of_the_orbit() -> None:
    model, _, symmetries = case("attention")
    point = canonical(symmetries, parameters(model)).params
    length = sum(float(p.square().sum()) for p in point.values())
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        near = dict(point)
        for s in symmetries:
            c = 0.1 * torch.randn(s.dimension, generator=generator, dtype=torch.float64)
            near.update(s.transform(near, c))
        assert sum(float(p.square().sum()) for p in near.values()) > length


def test_the_tangent_space_projects_as_a_dense_basis_does(name: str) -> None:
    model, _, symmetries = case(name)
    start = parameters(model)
    _, basis = dense(name, start)
    space = TangentSpace(symmetries, start)
    v = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in start.items()}
    flat = torch.cat([x.flatten() for x in v.values()])
    expected = flat - basis @ (basis.mT @ flat)
    found = torch.cat([x.flatten() for x in space.complement(v).values()])
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.allclose(
        torch.cat([x.flatten() for x in space.project(v).values()]), flat - expected, atol=1e-10
    )


def test_a_unit_that_nothing_reads_has_the_limit_of_its_orbit() -> None:
    torch.manual_seed(0)
    model = mlp(6, 4, 3).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0.0
    x, y = blobs()
    batch = (x.double(), y)
    found = [s for s in discover(model, batch) if s.family == "rescale"]
    point = canonical(found, parameters(model))  # type: ignore[arg-type]
    assert float(point.params["0.weight"][1].abs().max()) < 1e-100
    assert float(point.params["0.weight"][0].abs().max()) > 0
    assert point.imbalance < 1e-12


def test_a_network_without_symmetries_says_that_it_is_the_plain_sharpness() -> None:
    torch.manual_seed(0)
    model = mlp(6, 4, 3, activation=nn.GELU).double()
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    probe = Curvature(k=1, orbit_free=True)
    x, y = blobs()
    with eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss: Any = monitor.loss(lambda m, b: (m(b[0]) - F.one_hot(b[1])).square().mean())
        loss(model, (x.double(), y)).backward()
        optimizer.step()
    (record,) = [r for r in sink.records if r.name == "curvature/orbit_free_sharpness"]
    assert record.status == "not_applicable"
    assert "the sharpness itself" in record.note


class Loop(nn.Module):
    """A linear recurrence: W -> T W T^-1 has no canonical point in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.h = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.tanh(self.h(self.w(self.w(y))))


def test_conjugation_is_refused_with_the_reason() -> None:
    torch.manual_seed(0)
    batch = (torch.randn(8, 4), torch.randn(8, 4))
    found = [s for s in discover(Loop(), batch) if s.family == "general_linear"]
    assert found, "the linear recurrence carries GL(4)"
    with pytest.raises(ValueError, match="no closed form"):
        canonical(found, parameters(Loop()))  # type: ignore[arg-type]
