"""The two-arm robot: its torques obey the mirror, and a network that knows it fits better."""

import torch

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.robot import DEMO, MIRROR, torques
from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import trivial


def test_the_dynamics_obey_the_mirror_with_its_signs() -> None:
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert equivariance_error(torques, x, MIRROR).verdict == "holds"
    unsigned = Equivariance(MIRROR.group, MIRROR.input_action, trivial)
    assert equivariance_error(torques, x, unsigned).verdict == "violated"


def test_the_torques_are_those_of_lagrange() -> None:
    """tau = d/dt dL/dq' - dL/dq for one arm, by automatic differentiation of the Lagrangian."""

    def lagrangian(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        (a, b), (u, w) = q, v
        kinetic = 0.5 * u**2 + 0.5 * (u**2 + (u + w) ** 2 + 2 * u * (u + w) * torch.cos(b))
        return kinetic + 2 * torch.cos(a) + torch.cos(a + b)

    x = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q, v, p = x.reshape(3, 2, 2)[:, 0]
    momentum = torch.func.grad(lagrangian, 1)
    change, force = torch.func.jvp(momentum, (q, v), (v, p))[1], torch.func.grad(lagrangian)(q, v)
    assert torch.allclose(torques(x[None])[0, :2], change - force, rtol=1e-12, atol=1e-12)


def test_the_averaged_network_keeps_the_mirror_and_fits_better_than_augmentation() -> None:
    data = DEMO.load()
    ends = {entry: train(DEMO, entry, data, steps=201, schedule=200) for entry in DEMO.entries}
    errors = {entry: end.errors["mirror"] for entry, end in ends.items()}
    assert {e: r.verdict for e, r in errors.items()} == {
        "plain": "violated",
        "augmented": "violated",
        "averaged": "holds",
        "tied": "holds",
    }
    assert "layers.0" in errors["plain"].note
    assert ends["averaged"].score < ends["augmented"].score < ends["plain"].score
    assert errors["plain"].value > errors["augmented"].value > 1e-2
