"""Autocast inside a loss: off where precision is full, theirs and scaled where it is as trained."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.capture.gradient_check import replayed_gradient
from eqtoolbox.isolation import RandomState
from eqtoolbox.linalg import hessian
from eqtoolbox.objective import Objective
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import Engine, ProbePrecision
from eqtoolbox.probes.noether import Noether
from eqtoolbox.sinks.memory import MemorySink

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.m, self.n = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.m(self.a(x))))
        return F.relu(self.n(y) + self.skip(x))


class Residual(nn.Sequential):
    """A small residual network."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), Block(6, 12, 2), *head)


class Inside(Residual):
    """The same, entering the autocast in its own forward."""

    kind = torch.float16
    device = "cpu"

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, self.kind):
            return super().forward(x).float()


def plain(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def entering(kind: torch.dtype, device: str) -> Any:
    def loss(model: Any, batch: Any) -> Tensor:
        with torch.autocast(device, kind):
            return plain(model, batch)

    return loss


def step(
    model: nn.Module,
    loss: Any,
    precision: ProbePrecision = "full",
    device: str = "cpu",
    more: Any = (),
) -> Any:
    """Records of one step of SGD with a gradient scaler, by name."""
    torch.manual_seed(1)
    batch = (torch.randn(16, 3, 8, 8).to(device), (torch.arange(16) % 5).to(device))
    optimizer = torch.optim.SGD(model.to(device).parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device)
    probes = [Curvature(k=1, tol=1e-4, engine=Engine(precision=precision)), *more]
    sink = MemorySink()
    monitor = eq.attach(model, optimizer, probes=probes, schedule=1, budget=None, sinks=[sink])
    scaler.scale(monitor.loss(loss)(model, batch)).backward()
    scaler.step(optimizer)
    scaler.update()
    monitor.close()
    return {r.name: r for r in sink.records}


@pytest.fixture(scope="module")
def truth() -> float:
    return float(step(Residual(), plain)["curvature/sharpness"].value)


@pytest.mark.parametrize("name", HALVES)
def test_full_precision_measures_what_float32_training_would(name: str, truth: float) -> None:
    found = step(Residual(), entering(HALVES[name], "cpu"), more=[Noether()])
    assert found["curvature/sharpness"].value == pytest.approx(truth, rel=1e-3)
    assert not [r for r in found.values() if r.status in ("non_finite", "failed")]
    note = found["curvature/self_test/rounding"].note
    assert note.startswith("full: the loss trains under an autocast"), note


def test_an_autocast_of_the_models_own_forward_is_off_too(truth: float) -> None:
    found = step(Inside(), plain)
    assert found["curvature/sharpness"].value == pytest.approx(truth, rel=1e-3)


def test_a_decorator_of_the_loss_obeys(truth: float) -> None:
    found = step(Residual(), torch.autocast("cpu", torch.float16)(plain))
    assert found["curvature/sharpness"].value == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("name", HALVES)
def test_as_trained_measures_in_half_precision_and_says_so(name: str, truth: float) -> None:
    found = step(Residual(), entering(HALVES[name], "cpu"), "as_trained")
    sharpness = found["curvature/sharpness"].value
    assert sharpness == pytest.approx(truth, rel=0.03)
    assert sharpness != pytest.approx(truth, rel=1e-6)  # it is not the full one
    record = found["curvature/self_test/rounding"]
    assert record.value == torch.finfo(HALVES[name]).eps
    assert record.note.startswith("as_trained: with operations in")
    assert ("the loss scaled" in record.note) == (name == "float16")


def test_training_without_half_precision_says_nothing_of_it() -> None:
    assert "curvature/self_test/rounding" not in step(Residual(), plain)


def steep(params: dict[str, Tensor]) -> Tensor:
    """A loss whose slopes, times 65536, are beyond float16."""
    x = params["x"].half()
    return (300 * x.square()).sum().float()


def test_a_scale_that_overflows_is_made_smaller() -> None:
    x, v = {"x": torch.tensor([1.0, 0.5])}, {"x": torch.tensor([0.6, 0.8])}
    with hessian(steep, x, scale=2.0**16, accuracy=0.1) as H:
        assert torch.allclose(H(v)["x"], 600 * v["x"], rtol=2e-3)
        assert torch.allclose(H.gradient["x"], 600 * x["x"], rtol=2e-3)


def test_a_loss_that_no_scale_can_save_is_not_finite() -> None:
    x, loss = {"x": torch.ones(2)}, lambda p: (p["x"] * 3e38).square().sum()
    with (
        hessian(loss, x, scale=2.0) as H,
        pytest.raises(FloatingPointError, match="the loss must be finite"),
    ):
        H(x)


def faint(params: dict[str, Tensor]) -> Tensor:
    """A loss whose slopes vanish in float16 unless they are scaled."""
    return (params["x"].half().float() * 1e-9).square().sum() * 1e6 + 0 * params["x"].sum()


def test_a_scale_saves_what_float16_would_lose() -> None:
    x, v = {"x": torch.tensor([1.0, 0.5])}, {"x": torch.tensor([0.6, 0.8])}
    with hessian(faint, x, accuracy=0.1) as plainly, hessian(faint, x, scale=2.0**16) as scaled:
        assert float(plainly(v)["x"].norm()) == 0.0
        assert torch.allclose(scaled(v)["x"], 2e-12 * v["x"], rtol=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_full_precision_on_a_gpu_measures_what_float32_training_would() -> None:
    expected = step(Residual(), plain, device="cuda")["curvature/sharpness"].value
    for model, loss in (
        (Residual(), entering(torch.float16, "cuda")),
        (Residual(), torch.autocast("cuda", torch.float16)(plain)),
    ):
        found = step(model, loss, device="cuda")
        assert found["curvature/sharpness"].value == pytest.approx(expected, rel=1e-3)
        assert not [r for r in found.values() if r.status in ("non_finite", "failed")]


def test_a_gradient_of_float16_is_replayed_at_the_scale_it_was_trained_at() -> None:
    """Slopes of 1e-8 are 0 in float16: without the scale the check would compare with nothing."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(8, 4)

    def loss(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            out = m(x)
        return 1e-8 * out.float().square().sum()

    objective = Objective(model=model, loss_fn=loss, batch=x, random=RandomState(), buffers={})
    params = {n: p.detach() for n, p in model.named_parameters()}
    exact = 2e-8 * (x.T @ model(x).detach())[:, 0]
    scaled = replayed_gradient(objective, params, 2.0**16)["weight"][0]
    assert torch.allclose(scaled, exact, rtol=0.02)
    lost = replayed_gradient(objective, params)["weight"][0]
    assert not torch.allclose(lost, exact, rtol=0.5)
