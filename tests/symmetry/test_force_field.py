"""Models that differentiate inside: energy, forces and stress of a crystal under E(3)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import Tensors, positions, vectors
from eqtoolbox.symmetry.algebra import discover_data
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import culprit
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.matrices import E3, SO3
from eqtoolbox.symmetry.layerwise import layer_shares
from eqtoolbox.symmetry.lie import lie_derivative
from eqtoolbox.symmetry.testing import assert_equivariant
from tests.conftest import mlp

INPUTS = Each({"pos": positions, "cell": vectors})
MOTIONS = Equivariance(
    E3(), INPUTS, Each({"energy": trivial, "forces": vectors, "stress": Tensors(2)}), name="motions"
)
SCALARS = Equivariance(  # wrong: forces that stay as the crystal turns
    E3(), INPUTS, Each({"energy": trivial, "forces": trivial, "stress": Tensors(2)}), name="scalars"
)
SHIFTS = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)


class Crystal(nn.Module):
    """Pair energies over neighbouring cells; forces and stress are its slopes, as users take them.

    Args:
        cut: positions are detached before they are differentiated by.
        uneven: one direction counts more, which no rotation keeps.
    """

    def __init__(self, cut: bool = False, uneven: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(1, 8, 1, activation=nn.SiLU)
        self.cut, self.uneven = cut, uneven

    def forward(self, batch: Any) -> dict[str, Tensor]:
        x, cell = batch["pos"], batch["cell"]
        x = x.detach().requires_grad_() if self.cut else x.requires_grad_()
        strain = torch.zeros_like(cell, requires_grad=True)
        even = torch.eye(3).to(cell) + (strain + strain.mT) / 2
        y, frame = x @ even, SHIFTS.to(x) @ (cell @ even)
        r = y[:, :, None, None] - y[:, None, :, None] + frame[:, None, None]
        if self.uneven:
            r = r * torch.tensor([1.0, 1.0, 1.1]).to(r)
        energy = self.net((-r.square().sum(-1, keepdim=True)).exp()).sum((1, 2, 3, 4))
        found = torch.autograd.grad(energy.sum(), (x, strain), create_graph=self.training)
        volume = torch.linalg.det(cell).abs()[:, None, None]
        return {"energy": energy, "forces": -found[0], "stress": found[1] / volume}


def crystals() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 3, 3, generator=generator)
    return {
        "pos": torch.randn(3, 3, 3, generator=generator),
        "cell": 2 * torch.eye(3) + 0.2 * noise,
    }


@pytest.mark.parametrize("cut", [False, True])
def test_energy_forces_and_stress_move_as_they_should(cut: bool) -> None:
    found = equivariance_error(Crystal(cut).eval(), crystals(), MOTIONS)
    assert found.verdict == "holds"
    assert set(found.parts) == {"energy", "forces", "stress"}
    assert assert_equivariant(Crystal(cut), crystals(), MOTIONS).verdict == "holds"


@pytest.mark.parametrize("cut", [False, True])
def test_their_lie_derivatives_vanish_through_the_gradient(cut: bool) -> None:
    """Third derivatives of the energy, though evaluation mode builds no graph of the forces."""
    found = lie_derivative(Crystal(cut).eval(), crystals(), MOTIONS)
    assert {f.verdict for f in found} == {"holds"}
    assert {f.mode for f in found} == {"double backward"}
    assert all(f.direction_ratio > 0.01 for f in found[:3])  # forces do turn


@pytest.mark.parametrize("cut", [False, True])
def test_an_uneven_energy_is_caught_by_all_of_them(cut: bool) -> None:
    model, batch = Crystal(cut, uneven=True).eval(), crystals()
    assert equivariance_error(model, batch, MOTIONS).verdict == "violated"
    found = lie_derivative(model, batch, MOTIONS)
    assert [f.verdict for f in found[1:3]] == ["violated", "violated"]
    assert {f.verdict for f in found[3:]} == {"holds"}  # translations
    with pytest.raises(AssertionError, match="motions violated"):
        assert_equivariant(model, batch, MOTIONS)
    assert culprit(model, batch, MOTIONS).layer == "net.0"


def test_forces_that_do_not_turn_are_caught() -> None:
    assert equivariance_error(Crystal().eval(), crystals(), SCALARS).verdict == "violated"
    found = lie_derivative(Crystal().eval(), crystals(), SCALARS)
    assert {f.verdict for f in found[:3]} == {"violated"}


def test_the_lie_derivative_is_that_of_the_closed_form() -> None:
    """f(x) = -dE/dx of E = sum |x|^4 / 4 is -x |x|^2: J v by hand."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forces(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad((x.square().sum(1).square() / 4).sum(), x)[0]

    wrong = Equivariance(SO3(), vectors, trivial)
    rates = sorted(f.rate for f in lie_derivative(forces, x, wrong))
    expected = []
    for axis in torch.eye(3, dtype=torch.float64):
        turned = torch.linalg.cross(axis.expand_as(x), x)  # X(x); forces turn likewise
        change = turned * x.square().sum(1, keepdim=True)
        expected.append(float(change.norm()) / len(x) ** 0.5)
    assert rates == pytest.approx(sorted(expected), rel=1e-9)
    many = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert discover_data(forces, many, equivariant=True).name == "so(3)"


class Field(nn.Module):
    """Forces of an energy by its input, which whoever calls it has require gradients."""

    def __init__(self, uneven: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(1, 8, 1, activation=nn.SiLU)
        self.weights = torch.tensor([1.0, 1.0, 1.5 if uneven else 1.0])

    def forward(self, x: Tensor) -> Tensor:
        far = (x.square() * self.weights.to(x)).sum(-1, keepdim=True)
        return -torch.autograd.grad(self.net(far).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("uneven", [False, True])
def test_inputs_require_gradients_where_those_given_do(uneven: bool) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    turns, verdict = Equivariance(SO3(), vectors, vectors), "violated" if uneven else "holds"
    assert equivariance_error(Field(uneven), x, turns).verdict == verdict
    assert verdict in {f.verdict for f in lie_derivative(Field(uneven), x, turns)}
    assert (culprit(Field(uneven), x, turns).layer is None) != uneven
    with pytest.raises(RuntimeError, match="does not require grad"):
        equivariance_error(Field(uneven), x.detach(), turns)


def test_a_loop_may_have_them_require_gradients() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        return (model(x.clone().requires_grad_()) - 1).square().mean()

    model, sink = Field(), MemorySink()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    turns = Equivariance(SO3(), vectors, vectors, name="turns")
    probe = EquivarianceError(symmetries=(turns,))
    monitor = eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise"
    )
    monitor.loss(loss)(model, torch.randn(6, 3)).backward()
    optimizer.step()
    monitor.close()
    judged = {r.verdict for r in sink.records if r.verdict}
    assert judged == {"holds"}


def test_shares_of_layers_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="takes gradients of its layers inside"):
        layer_shares(Crystal(uneven=True).eval(), crystals(), MOTIONS)


def test_a_claim_on_all_outputs_is_measured_in_training() -> None:
    model, sink = Crystal(cut=True), MemorySink()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    probe = EquivarianceError(symmetries=(MOTIONS, SCALARS), locate=True, layers=True)
    monitor = eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise"
    )

    def loss(model: Any, batch: Any) -> Tensor:
        return sum(y.square().mean() for y in model(batch).values())  # type: ignore[return-value]

    wrapped = monitor.loss(loss)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(model, crystals()).backward()
        optimizer.step()
    monitor.close()
    judged = {r.name: r.verdict for r in sink.records if r.verdict and r.step == 1}
    right = {v for name, v in judged.items() if "motions" in name}
    assert right == {"holds"}
    assert judged["equivariance/relative_error/scalars"] == "violated"
    shares = [r for r in sink.records if "layer_share" in r.name]
    assert shares
    assert all("takes gradients of its layers inside" in r.note for r in shares)


def test_an_audit_measures_it() -> None:
    found = audit(Crystal(cut=True), crystals(), claims=[MOTIONS, SCALARS])
    verdicts = {s.symmetry.name: s.result.verdict for s in found.scores if s.result is not None}
    assert verdicts["motions"] == "holds"
    assert verdicts["scalars"] == "violated"
