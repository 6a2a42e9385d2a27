"""Closed forms of charges under SGD, against training that is really run."""

import math

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry.flow import equilibrium, linear_charge, quadratic_charge

STEPS = 60


def trained(momentum: float = 0.0, lr: float = 0.05, decay: float = 0.1) -> dict[str, Tensor]:
    """A ReLU network in float64: its translation and rescale charges, and Q(g) of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 3, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay, momentum=momentum)

    def form(tensors: list[Tensor]) -> Tensor:
        w1, b1, w2, _ = tensors
        return 0.5 * (w1.square().sum(1) + b1.square() - w2.square().sum(0))

    charges = lambda: form([p.detach() for p in model.parameters()])
    start = {"rescale": charges(), "translation": model[2].weight.detach().sum(0)}
    forces = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        forces.append(form([p.grad for p in model.parameters()]))  # type: ignore[misc]
        optimizer.step()
    end = {"rescale_end": charges(), "translation_end": model[2].weight.detach().sum(0)}
    return start | end | {"forces": torch.stack(forces)}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_linear_charges_follow_the_recurrence_exactly(momentum: float) -> None:
    run = trained(momentum)
    options = {"lr": 0.05, "decay": 0.1}
    predicted = linear_charge(run["translation"], STEPS, momentum=momentum, **options)
    assert torch.allclose(predicted, run["translation_end"], rtol=1e-10, atol=1e-13)
    wrong = linear_charge(run["translation"], STEPS, momentum=0.5 * momentum + 0.1, **options)
    assert not torch.allclose(wrong, run["translation_end"], rtol=1e-3)


@pytest.mark.parametrize("decay", [0.2, 0.1, 0.05])
def test_the_modified_flow_of_quadratic_charges_errs_by_n_eta_gamma_squared(decay: float) -> None:
    """(1 - x)^2n = e^{-2nx} (1 - n x^2 + ...) with x = eta gamma: the error of the closed form."""
    run, x = trained(lr=0.05, decay=decay), 0.05 * decay
    predicted = quadratic_charge(run["rescale"], run["forces"], lr=0.05, decay=decay)
    error = (predicted - run["rescale_end"]).norm() / run["rescale"].norm()
    leading = STEPS * x**2 * math.exp(-2 * STEPS * x)
    assert float(error) == pytest.approx(leading, rel=0.1)


def test_a_flow_without_its_force_or_its_decay_is_off() -> None:
    run = trained(lr=0.5, decay=0.002)
    right = quadratic_charge(run["rescale"], run["forces"], lr=0.5, decay=0.002)
    gap = (right - run["rescale_end"]).norm()
    for forces, decay in ((0 * run["forces"], 0.002), (run["forces"], 0.0)):
        wrong = quadratic_charge(run["rescale"], forces, lr=0.5, decay=decay)
        assert (wrong - run["rescale_end"]).norm() > 10 * gap


def scale_invariant(steps: int, lr: float, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Norms, gradient norms and turns of w under SGD on noise orthogonal to w, |g| = 1 / |w|."""
    torch.manual_seed(0)
    w = torch.randn(50, dtype=torch.float64)
    norms, gradients, turns = [], [], []
    for _ in range(steps):
        noise = torch.randn(50, dtype=torch.float64)
        noise = noise - (noise @ w) / (w @ w) * w
        g = noise / noise.norm() / w.norm()
        new = w - lr * (g + decay * w)
        norms.append(w.norm())
        gradients.append(g.norm())
        turns.append(torch.acos((w @ new) / (w.norm() * new.norm())))
        w = new
    return torch.stack(norms), torch.stack(gradients), torch.stack(turns)


def test_scale_symmetric_weights_reach_their_equilibrium_in_the_predicted_steps() -> None:
    lr, decay = 0.2, 0.02
    norms, gradients, turns = scale_invariant(1500, lr, decay)
    found = equilibrium(norms[:1], gradients[:1], lr=lr, decay=decay)
    assert float(norms[-1]) == pytest.approx(float(found.target), rel=lr * decay)
    assert float(turns[-1]) == pytest.approx(found.angle, rel=2 * lr * decay)
    arrived = (norms**4 / found.target**4 - 1).abs() < 0.1
    first = int(arrived.nonzero()[0])
    assert first == pytest.approx(float(found.steps[0]), rel=0.05)
    assert float(found.effective_lr[0]) == pytest.approx(lr / float(norms[0]) ** 2)
    assert math.isclose(found.angle, math.sqrt(2 * lr * decay))


def test_without_decay_there_is_no_equilibrium() -> None:
    with pytest.raises(ValueError, match="decay must be positive for an equilibrium, got 0"):
        equilibrium(torch.ones(1), torch.ones(1), lr=0.1, decay=0.0)
