"""The barrier between two models, against formulas and torch's own recomputation of statistics."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq


class Product(nn.Module):
    """f(x) = u w x of two numbers."""

    def __init__(self, u: float, w: float) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor(u, dtype=torch.float64))
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.u * self.w * x


def normalised(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    model(torch.randn(32, 1, 8, 8))
    return model.eval()


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(count, 1, 8, 8, generator=rng), torch.arange(count) % 3


def test_the_barrier_of_a_product_is_that_of_its_formula() -> None:
    """Between (1, 1) and (-1, -1), which compute the same: u w = (1 - 2 t)^2."""
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    found = eq.act.barrier(Product(1.0, 1.0), Product(-1.0, -1.0), (x, x), points=5)
    expected = [((1 - 2 * t) ** 2 - 1) ** 2 * 5 for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found.losses == pytest.approx(expected, abs=1e-12)
    assert found.barrier == pytest.approx(5.0)
    assert found.highest == 0.5
    assert found.accuracies is None
    slanted = eq.act.barrier(Product(1.0, 1.0), Product(1.0, 0.0), (x, x), points=3)
    assert slanted.barrier == 0.0  # (t^2 - t) 5 <= 0 below the straight line
    assert slanted.losses == pytest.approx([0.0, 1.25, 5.0])


def test_batches_give_the_whole_and_its_error() -> None:
    x, y = images()
    a, b = normalised(0), normalised(1)
    whole = eq.act.barrier(a, b, (x, y), recompute=(x, y), points=5)
    parts = [(x[:12], y[:12]), (x[12:20], y[12:20]), (x[20:], y[20:])]
    found = eq.act.barrier(a, b, parts, recompute=(x, y), points=5)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    loaded = eq.act.barrier(a, b, loader, recompute=(x, y), points=5)
    assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    assert loaded.losses == pytest.approx(whole.losses, rel=1e-5)
    assert (found.batches, found.samples, whole.batches) == (3, 24, 1)
    assert found.stderr > 0 and whole.stderr != whole.stderr
    assert "±" in str(found) and "±" not in str(whole)


def test_statistics_are_those_that_torch_recomputes() -> None:
    x, y = images()
    a, b = normalised(0), normalised(1)
    halves = [(x[:12], y[:12]), (x[12:], y[12:])]
    found = eq.act.barrier(a, b, (x, y), recompute=halves, points=3)
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for p, q in zip(middle.parameters(), b.parameters(), strict=True):
            p.copy_((p + q) / 2)
    straight = copy.deepcopy(middle)
    update_bn(halves, middle)
    with torch.no_grad():
        for m, n in zip(straight.buffers(), b.buffers(), strict=True):
            m.copy_((m + n) / 2)
        expected = [m.eval()(x) for m in (middle, straight)]
    assert found.losses[1] == pytest.approx(float(F.cross_entropy(expected[0], y)), rel=1e-5)
    assert found.accuracies is not None
    assert found.accuracies[1] == pytest.approx(float((expected[0].argmax(1) == y).double().mean()))
    kept = eq.act.barrier(a, b, (x, y), recompute=False, points=3)
    assert kept.losses[1] == pytest.approx(float(F.cross_entropy(expected[1], y)), rel=1e-5)
    assert abs(kept.losses[1] - found.losses[1]) > 1e-4 * kept.losses[1]
    assert (found.recomputed, kept.recomputed) == (True, False)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_of_it(training: bool) -> None:
    a, b = normalised(0).train(training), normalised(1).train(training)
    momentum = a[1].momentum
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (a, b)]
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    loader = DataLoader(TensorDataset(*images()), batch_size=8, shuffle=True)
    eq.act.barrier(a, b, loader, points=3)
    for model, was in zip((a, b), before, strict=True):
        assert all(torch.equal(t, was[n]) for n, t in model.state_dict().items())
        assert all(m.training == training for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
    assert a[1].momentum == momentum
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1] == random.getstate()
    assert np.array_equal(streams[2], np.random.get_state()[1])


def test_what_cannot_be_compared_is_refused() -> None:
    a, data = normalised(0), images()
    with pytest.raises(ValueError, match=r"weight of torch\.float32 and of torch\.float64"):
        eq.act.barrier(nn.Linear(6, 3), nn.Linear(6, 3).double(), data)
    with pytest.raises(ValueError, match="one architecture"):
        eq.act.barrier(a, nn.Linear(2, 2), data)
    with pytest.raises(ValueError, match="points must be an integer >= 3"):
        eq.act.barrier(a, a, data, points=2)
    with pytest.raises(ValueError, match="used up"):
        eq.act.barrier(a, a, iter(()))
    broken = copy.deepcopy(a)
    with torch.no_grad():
        broken[1].running_var[0] = torch.inf
    with pytest.raises(ValueError, match=r"1\.running_var is not finite"):
        eq.act.barrier(a, broken, data)
