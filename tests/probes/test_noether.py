"""The laws of the noether probe hold in float32 where they should, and only there."""

from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.probes.noether import Noether
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs, mlp
from tests.probes.test_symmetry_probes import run

EPS = 1e-2


class Normed(nn.Module):
    """A convolution before batch normalisation, what may come between, and a ReLU pair."""

    def __init__(self, limit: float | None = None, eps: float = EPS) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=eps)
        self.hidden, self.head, self.limit = nn.Linear(16, 6), nn.Linear(6, 3), limit

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.limit is None else x.clamp(-self.limit, self.limit)
        x = F.max_pool2d(torch.relu(self.norm(x)), 3).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 3


def trained(model: nn.Module, batch: Any, probe: eq.Probe, steps: int) -> list[Record]:
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), MemorySink()
    with eq.attach(
        model, optimizer, probes=[probe], schedule=3, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return list(sink.records)


@pytest.mark.parametrize("kind", ["normalised", "relu", "linear"])
def test_every_law_of_a_float32_run_holds_to_its_floor_until_the_loss_is_small(kind: str) -> None:
    """Saturated probabilities round alike at parameters that are one rounding apart."""
    torch.manual_seed(0)
    model = {
        "normalised": Normed,
        "relu": lambda: mlp(6, 16, 8, 3),
        "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)),
    }[kind]()
    records = trained(model, images() if kind == "normalised" else blobs(), Noether(), 45)
    ratios: dict[str, list[float]] = defaultdict(list)
    for r in records:
        if r.verdict is not None and r.floor:
            ratios[r.name].append(r.value / r.floor)
    assert {n.split("/")[1] for n in ratios} >= {"zeroth_order", "first_order", "second_order"}
    assert max(max(v) for v in ratios.values()) <= 3  # the verdict "holds"
    second = [x for n, v in ratios.items() if "second_order" in n for x in v]
    assert sorted(second)[len(second) // 2] > 0.05  # floors are no more than 20 times too high


@pytest.mark.parametrize(("kind", "seed"), [("normalised", 7), ("relu", 4), ("linear", 1)])
def test_laws_of_a_loss_as_small_as_its_rounding_hold(kind: str, seed: int) -> None:
    """Saturated probabilities: 1e-6 of loss, of which float32 has one digit."""
    torch.manual_seed(seed)
    model = {
        "normalised": Normed,
        "relu": lambda: mlp(6, 16, 8, 3),
        "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)),
    }[kind]()
    x, _ = images() if kind == "normalised" else blobs()
    with torch.no_grad():
        for p in [*model.parameters()][-2:]:
            p.mul_(40)
        best = model(x).topk(2).values
        x = x[(best[:, 1] - best[:, 0]).argsort()[: len(x) // 2]]
        batch = x, model(x).argmax(1)
        assert 0 < F.cross_entropy(model(x), batch[1]) < 1e-5
    laws = [r for r in trained(model, batch, Noether(), 1) if r.verdict is not None]
    assert len(laws) >= 6 and {r.verdict for r in laws} == {"holds"}


@pytest.mark.usefixtures("claimed")
def test_epsilon_tells_itself_from_a_broken_symmetry() -> None:
    torch.manual_seed(0)
    probe = Noether()
    records = run(Normed(), probe, images(), steps=2)
    measured, predicted = records["noether/slope/scale"], records["noether/predicted_slope/scale"]
    assert abs(measured.value) > 30 * measured.floor
    assert predicted.value == pytest.approx(measured.value, abs=3 * measured.floor)
    for quantity in ("epsilon", "epsilon_second_order", "zeroth_order", "first_order"):
        assert records[f"noether/{quantity}/scale"].verdict == "holds"
    assert records["noether/rayleigh/scale"].value == pytest.approx(
        records["noether/predicted_rayleigh/scale"].value, rel=1e-3
    )
    assert "measured" in records["noether/epsilon/scale"].note
    clamped = run(Normed(limit=0.8), probe, images(), steps=2)  # claimed of another network
    for quantity in ("epsilon", "epsilon_second_order"):
        assert clamped[f"noether/{quantity}/scale"].verdict == "violated"


def test_a_network_of_approximate_laws_alone_is_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3, eps=EPS, affine=False))
    records = {r.name: r for r in trained(model, blobs(), Noether(), 4)}
    families = {name.split("/")[2] for name in records if name.startswith("noether/first_order/")}
    assert families == {"scale"}, families
    assert records["noether/epsilon/scale"].verdict == "holds"


def test_a_smaller_epsilon_predicts_a_smaller_slope() -> None:
    slopes = []
    for eps in (1e-2, 1e-3):
        torch.manual_seed(0)
        records = run(Normed(eps=eps), Noether(), images())
        slopes.append(records["noether/predicted_slope/scale"].value)
    assert slopes[0] / slopes[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("size", [1e-3, 1e-2])
@pytest.mark.usefixtures("claimed")
def test_a_planted_penalty_is_violated_at_every_order(size: float) -> None:
    torch.manual_seed(0)
    model, probe = mlp(6, 16, 8, 3), Noether()
    run(model, probe, blobs())
    spoilt = lambda m, b: F.cross_entropy(m(b[0]), b[1]) + size * m[0].weight.square().sum()
    records = run(model, probe, blobs(), loss=spoilt)
    for order in ("zeroth", "first", "second"):
        assert records[f"noether/{order}_order/rescale"].verdict == "violated", order
        assert records[f"noether/{order}_order/translation"].verdict == "holds", order


@pytest.mark.usefixtures("planted")
def test_families_whose_laws_are_exact_share_products_and_one_that_breaks_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    product, seen = Hessian._product, list[int]()
    monkeypatch.setattr(Hessian, "_product", lambda *given: (seen.append(1), product(*given))[1])

    def measured(size: float) -> tuple[dict[str, Record], int]:
        torch.manual_seed(0)
        penalty = torch.zeros(())
        loss = lambda m, b: F.cross_entropy(m(b[0]), b[1]) + penalty * m[0].weight.square().sum()
        sink, model = MemorySink(), mlp(6, 16, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with eq.attach(model, optimizer, probes=[Noether()], budget=None, schedule=1,
                       sinks=[sink], on_error="raise") as monitor:  # fmt: skip
            training = monitor.loss(loss)
            for step in range(2):
                penalty.fill_(size * step)
                seen.clear()
                optimizer.zero_grad()
                training(model, blobs()).backward()
                optimizer.step()
        return {r.name: r for r in sink.records if r.step == 1}, len(seen)

    rows, count = measured(0.0)
    second = {n: r for n, r in rows.items() if "/second_order/" in n}
    assert len(second) >= 5 and sum(r.matvecs or 0 for r in second.values()) == 2
    assert count == 5  # of those that move outputs, of those that do not; again elsewhere; scale
    broken, count = measured(1e-3)
    verdicts = {n.split("/")[-1]: r.verdict for n, r in broken.items() if n in second}
    assert count == 10  # and each of three by itself, and the one that breaks in float64
    assert {f for f, v in verdicts.items() if v == "violated"} == {"homogeneity"}
    for name in ("noether/rayleigh/rescale", "noether/rayleigh/head_scale"):
        assert abs(rows[name].value - rows[name.replace("/ray", "/predicted_ray")].value) < 1e-4


@pytest.mark.usefixtures("claimed")
def test_a_claim_of_another_network_is_violated_at_order_0() -> None:
    torch.manual_seed(0)
    probe = Noether()
    before = run(mlp(6, 16, 8, 3), probe, blobs())
    assert before["noether/zeroth_order/rescale"].verdict == "holds"
    assert before["noether/zeroth_order/homogeneity"].verdict == "holds"
    records = run(mlp(6, 16, 8, 3, activation=nn.GELU), probe, blobs())
    assert records["noether/zeroth_order/rescale"].verdict == "violated"
    assert records["noether/zeroth_order/homogeneity"].verdict == "violated"
    assert records["noether/zeroth_order/head_scale"].verdict == "holds"


class Limited(nn.Module):
    """A ReLU pair whose units saturate just above where they are on this batch."""

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.a, self.b, self.limit = nn.Linear(6, 8), nn.Linear(8, 3), limit

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x if self.limit is None else x.clamp(max=self.limit))


@pytest.mark.usefixtures("claimed")
def test_order_0_sees_a_kink_at_a_distance_where_derivatives_do_not() -> None:
    torch.manual_seed(0)
    x, y = blobs()
    probe, free = Noether(), Limited()
    run(free, probe, (x, y))
    highest = float(torch.relu(free.a(x)).max().detach())
    limited = Limited(1.001 * highest)
    limited.load_state_dict(free.state_dict())
    records = run(limited, probe, (x, y))
    assert records["noether/first_order/rescale"].verdict == "holds"
    assert records["noether/second_order/rescale"].verdict == "holds"
    assert records["noether/zeroth_order/rescale"].verdict == "violated"


class Kernel(nn.Module):
    """Layer normalisation called below torch's functions, as by kernels of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.aten.native_layer_norm(self.a(x), [5], None, None, EPS)[0]
        return self.head(torch.tanh(y))


def test_a_kernel_whose_epsilon_is_not_seen_says_so() -> None:
    torch.manual_seed(0)
    records = run(Kernel(), Noether(), blobs(), steps=2)
    assert records["noether/epsilon/scale"].status == "not_applicable"
    assert "no epsilon is seen" in records["noether/epsilon/scale"].note
    assert records["noether/first_order/scale"].verdict == "holds"
