"""Losses that differentiate inside are measured like any other."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.attach.entry import KINDS
from eqtoolbox.attach.fields import claims, kinds_of
from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.noether import Noether
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.actions.action import flip, trivial
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Flip
from eqtoolbox.symmetry.testing import assert_equivariant
from tests.conftest import mlp
from tests.loops.inner_losses import PROBLEMS, Problem, dense, penalised, pinn
from tests.neutrality.watch import digest

pytestmark = pytest.mark.filterwarnings("ignore:Using backward")  # which some losses do
SEED = 11
LR = 0.01


def trained(problem: Problem, probes: Any, steps: int = 1) -> Any:
    """Records of some steps, the random streams seeded before each; without probes, none."""
    model, loss, batch = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sink = MemorySink()
    options = {"schedule": 1, "budget": None, "sinks": [sink], "on_error": "raise"}
    monitor = eq.attach(model, optimizer, probes=probes, **options) if probes else None
    wrapped = monitor.loss(loss) if monitor else loss
    for k in range(steps):
        torch.manual_seed(SEED + k)
        optimizer.zero_grad()
        value = wrapped(model, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    if monitor:
        monitor.close()
    return sink.records


@pytest.mark.parametrize("name", PROBLEMS)
def test_sharpness_is_that_of_the_dense_hessian(name: str) -> None:
    expected = float(dense(*PROBLEMS[name](), seed=SEED)[-1])
    probe = Curvature(k=1, tol=1e-4)
    found = {r.name: r for r in trained(PROBLEMS[name](), [probe])}
    record = found["curvature/sharpness"]
    assert record.status == "ok", record.note
    assert record.value == pytest.approx(expected, rel=2e-3)
    assert found["monitor/closure_grad_cos"].value == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_probe_fails(name: str) -> None:
    records = trained(PROBLEMS[name](), "standard", steps=2)
    assert not [(r.name, r.note) for r in records if r.status == "failed"]
    assert [r for r in records if r.status == "ok" and r.probe == "curvature"]


@pytest.mark.parametrize("name", ["pinn", "wgan_gp", "attacked", "marked_constants"])
def test_training_is_the_same_with_the_monitor(name: str) -> None:
    ends = []
    for probes in ("standard", None):
        model, loss, batch = PROBLEMS[name]()
        trained((model, loss, batch), probes, steps=3)
        ends.append(digest(model.state_dict(), torch.get_rng_state()))
    assert ends[0] == ends[1]


class Demanding(nn.Module):
    """Works with gradients on only, in its trained parameters too; a forward derivative aside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._functorch.peek_interpreter_stack() is None:
            demand(self)
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def demand(model: Any) -> None:
    assert torch.is_grad_enabled(), "no gradients here"
    assert not torch.is_inference_mode_enabled(), "inference mode"
    assert all(p.requires_grad for p in model.parameters()), "parameters without gradients"


def test_no_probe_evaluates_a_loss_without_gradients() -> None:
    model, loss, batch = pinn()

    def demanding(model: Any, x: Tensor) -> Tensor:
        demand(model)
        return loss(model, x)

    every = [kind() for kind in KINDS if not any(map(claims, kinds_of(kind).values()))]
    records = trained((model, demanding, batch), every, steps=2)
    assert not [r for r in records if r.status == "failed"]
    eq.weights.discover(model, batch, demanding)


@pytest.mark.parametrize("precision", ["full", "as_trained"])
def test_no_probe_evaluates_a_model_without_gradients(precision: Any) -> None:
    torch.manual_seed(0)
    model, image, labels = Demanding(), torch.randn(4, 1, 6, 6), torch.arange(4) % 3
    curvature = Curvature(k=1, engine=Engine(precision=precision, memory="low"))
    equivariance = EquivarianceError(shadow=True, locate=True, layers=True)
    probes = [curvature, equivariance, Asymmetry(), Noether(), Conservation()]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    records = trained((model, loss, (image, labels)), probes, steps=2)
    assert not [r for r in records if r.status == "failed"]
    audit(model, image)
    with pytest.raises(AssertionError, match=r"flip\S* violated"):
        assert_equivariant(model, image, Equivariance(Flip(), flip, trivial))


def test_an_evaluation_without_gradients_would_be_seen() -> None:
    with torch.no_grad(), pytest.raises(AssertionError, match="no gradients here"):
        Demanding()(torch.randn(4, 1, 6, 6))


def test_the_laws_of_a_penalty_on_gradients_hold() -> None:
    """Rescaling units of a LeakyReLU critic changes neither its scores nor their slopes."""
    torch.manual_seed(0)
    critic = mlp(4, 6, 6, 1, activation=nn.LeakyReLU)
    batch = (torch.randn(8, 4), torch.randn(8, 4))
    records = trained((critic, penalised, batch), [Conservation(), Noether()], steps=2)
    judged = [r for r in records if r.verdict is not None and "rescale" in r.name]
    assert judged
    assert {r.verdict for r in judged} == {"holds"}


def test_a_penalty_on_weights_beside_it_breaks_them() -> None:
    torch.manual_seed(0)
    critic = mlp(4, 6, 6, 1, activation=nn.LeakyReLU)
    batch = (torch.randn(8, 4), torch.randn(8, 4))

    def loss(model: Any, batch: Any) -> Tensor:
        return penalised(model, batch) + 1e-2 * model[0].weight.square().sum()

    found = eq.weights.discover(critic, batch, loss)
    assert not [
        s for s in found if s.family == "rescale" and s.status != "broken" and "0-2" in s.name
    ]
    assert [s for s in found if s.family == "rescale" and s.status == "verified"]
