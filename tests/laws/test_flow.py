"""Closed forms of charges under SGD, against training that is really run."""

import math

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.weights.charges.flow import ClosedForm, equilibrium

STEPS = 60


def linear_charge(
    start: Tensor, step: int, *, lr: float, decay: float, momentum: float = 0.0
) -> Tensor:
    """Q_{n+1} = (1 + beta - eta gamma) Q_n - beta Q_{n-1} with Q_{-1} = Q_0: from rest, exact."""
    rows = [[1 + momentum - lr * decay, -momentum], [1.0, 0.0]]
    power = torch.linalg.matrix_power(torch.tensor(rows, dtype=torch.float64), step)
    return start * float(power[0].sum())


def quadratic_charge(start: Tensor, forces: Tensor, *, lr: float, decay: float) -> Tensor:
    """Q(t) = e^{-2 gamma t} Q_0 + eta int e^{-2 gamma (t - s)} Q(g(s)) ds: the modified flow."""
    ages = torch.arange(len(forces) - 1, -1, -1, dtype=start.dtype)
    weights = torch.exp(-2 * decay * lr * ages)
    return start * math.exp(-2 * decay * lr * len(forces)) + lr**2 * (weights @ forces)


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
    forces, moves = [], []
    for _ in range(STEPS):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        forces.append(form([p.grad for p in model.parameters()]))  # type: ignore[misc]
        optimizer.step()
        moves.append(
            form([p.detach() - b for p, b in zip(model.parameters(), before, strict=True)])
        )
    end = {"rescale_end": charges(), "translation_end": model[2].weight.detach().sum(0)}
    return start | end | {"forces": torch.stack(forces), "moves": torch.stack(moves)}


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


def followed(run: dict[str, Tensor], charge: str, degree: float, momentum: float) -> Tensor:
    """The charge after all steps by `ClosedForm`, from rest, given Q(d) of every step."""
    rates = [torch.full_like(run[charge], x) for x in (0.05, 0.1, momentum, degree)]
    course = ClosedForm(charge=run[charge], slope=torch.zeros_like(run[charge]))
    for move in run["moves"]:
        force = move if degree == 2 else torch.zeros_like(run[charge])
        course = course.step(force, lr=rates[0], decay=rates[1], momentum=rates[2], degree=rates[3])
    return course.charge


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("charge", "degree"), [("rescale", 2.0), ("translation", 1.0)])
def test_the_course_of_charges_under_momentum_and_decay_is_exact(
    momentum: float, charge: str, degree: float
) -> None:
    run = trained(momentum)
    end = run[f"{charge}_end"]
    right = followed(run, charge, degree, momentum)
    assert torch.allclose(right, end, rtol=1e-10, atol=1e-13)
    for wrong in (
        followed(run, charge, degree, momentum + 0.05),
        followed(run, charge, 1.5, momentum),
    ):
        assert (wrong - end).norm() > 1e-3 * end.norm()
    if degree == 1.0:
        closed = linear_charge(run[charge], STEPS, lr=0.05, decay=0.1, momentum=momentum)
        assert torch.allclose(right, closed, rtol=1e-10, atol=1e-13)


def scale_invariant(
    steps: int, lr: float, decay: float, momentum: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Norms, velocities and turns of w under SGD on noise orthogonal to w, |g| = 1 / |w|."""
    torch.manual_seed(0)
    w = torch.randn(50, dtype=torch.float64)
    v = torch.zeros_like(w)
    norms, gradients, turns = [], [], []
    for _ in range(steps):
        noise = torch.randn(50, dtype=torch.float64)
        noise = noise - (noise @ w) / (w @ w) * w
        g = noise / noise.norm() / w.norm()
        v = momentum * v + g + decay * w
        new = w - lr * v
        norms.append(w.norm())
        gradients.append(v.norm() if momentum else g.norm())
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


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_turns_scale_symmetric_weights_less_at_equilibrium(momentum: float) -> None:
    """By sqrt(1 + beta), and |w| settles at (1 + beta) eta / 2 gamma |v|^2, as derived."""
    lr, decay = 0.02, 0.02
    norms, velocities, turns = scale_invariant(6000, lr, decay, momentum)
    settled = slice(4000, None)
    found = equilibrium(
        norms[settled].mean()[None], velocities[settled].square().mean().sqrt()[None],
        lr=lr, decay=decay, momentum=momentum,
    )  # fmt: skip
    assert float(turns[settled].square().mean().sqrt()) == pytest.approx(found.angle, rel=0.02)
    assert float(norms[settled].mean()) == pytest.approx(float(found.target), rel=0.01)
    assert found.angle == pytest.approx(math.sqrt(2 * lr * decay / (1 + momentum)))
    without = equilibrium(norms[-1:], velocities[-1:], lr=lr, decay=decay)
    assert abs(float(turns[settled].square().mean().sqrt()) / without.angle - 1) > 0.15


def test_without_decay_there_is_no_equilibrium() -> None:
    with pytest.raises(ValueError, match="decay must be positive for an equilibrium, got 0"):
        equilibrium(torch.ones(1), torch.ones(1), lr=0.1, decay=0.0)
