"""The curvature probes against dense float64 Hessians and runs that really diverge."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.alignment import turn
from eqtoolbox.probes.curvature import Curvature, Reuse
from eqtoolbox.probes.secondary import secondary
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.top_space import TopSpace
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.record.record import Record
from eqtoolbox.record.schedule import every
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.agenda import AT_MOST
from eqtoolbox.watch.probe import Measurement, Probe, Scheduled
from tests.conftest import blobs, mlp

Make = Any
GRADIENT = "curvature/gradient_overlap"
EIGEN = ("eigenvalue", "smallest", "sharpness")


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Kept:
    """Makes an optimizer and keeps it."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def __call__(self, params: Any) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer = self.make(list(params))
        return self.optimizer


def run(
    probes: Any,
    make: Make = lambda p: torch.optim.SGD(p, lr=0.1),
    *,
    steps: int = 3,
    model: nn.Module | None = None,
    loss: Any = cross_entropy,
    batch: Any = None,
    budget: float | None = None,
    schedule: Any = 1,
) -> tuple[list[Record], nn.Module]:
    torch.manual_seed(0)
    model = (mlp(6, 8, 3, activation=nn.Tanh) if model is None else model).double()
    optimizer, sink = make(model.parameters()), MemorySink()
    x, y = blobs()
    batch = (x.double(), y) if batch is None else batch
    with eq.attach(
        model,
        optimizer,
        probes=probes,
        schedule=schedule,
        budget=budget,
        sinks=[sink],
        on_error="raise",
    ) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(steps):
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
    return sink.records, model


def value(records: list[Record], name: str, step: int = 0) -> float:
    (record,) = [r for r in records if r.name == name and r.step == step]
    return record.value


def dense(step: int, make: Make, batch: Any = None) -> tuple[Tensor, Tensor, nn.Module]:
    """Gradient and Hessian before optimizer step number `step`, by torch.func."""
    torch.manual_seed(0)
    model = mlp(6, 8, 3, activation=nn.Tanh).double()
    optimizer = make(model.parameters())
    x, y = blobs()
    for _ in range(step):
        optimizer.zero_grad()
        cross_entropy(model, (x.double(), y)).backward()
        optimizer.step()
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def of_vector(v: Tensor) -> Tensor:
        parts = v.split([s.numel() for s in shapes])
        params = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, params, (x.double(),)), y)

    return torch.func.grad(of_vector)(flat), torch.func.hessian(of_vector)(flat), model


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize("step", [0, 2])
def test_eigenvalues_and_alignment_agree_with_the_dense_hessian(step: int) -> None:
    records, _ = run([Curvature(k=3, tol=1e-8, angles=True)])
    g, h, _ = dense(step, sgd)
    values, vectors = torch.linalg.eigh(h)
    values, vectors = values.flip(0), vectors.flip(1)
    for i in range(3):
        assert value(records, f"curvature/eigenvalue/{i + 1}", step) == pytest.approx(
            float(values[i]), rel=1e-7
        )
    assert value(records, "curvature/sharpness", step) == pytest.approx(float(values[0]), rel=1e-7)
    assert value(records, "curvature/smallest", step) == pytest.approx(float(values[-1]), rel=1e-6)
    share = float((vectors[:, :3].T @ g).square().sum() / (g @ g))
    assert value(records, "curvature/gradient_overlap", step) == pytest.approx(share, rel=1e-5)
    assert value(records, "curvature/update_overlap", step) == pytest.approx(share, rel=1e-5)
    rayleigh = float(g @ h @ g / (g @ g))
    assert value(records, "curvature/gradient_rayleigh", step) == pytest.approx(rayleigh, rel=1e-9)
    assert value(records, "curvature/update_rayleigh", step) == pytest.approx(rayleigh, rel=1e-9)
    predicted = float(0.1 * g @ g - 0.5 * 0.01 * g @ h @ g)
    got = value(records, "curvature/predicted_decrease", step)
    assert got == pytest.approx(predicted, rel=1e-9)
    assert value(records, "curvature/actual_decrease", step) == pytest.approx(predicted, rel=0.02)
    assert value(records, "curvature/stability", step) == pytest.approx(
        float(values[0]) * 0.1 / 2, rel=1e-7
    )


def test_a_budget_too_small_is_not_converged_and_says_so() -> None:
    records, _ = run([Curvature(k=3, tol=1e-10, max_matvecs=5)], steps=1)
    (sharpness,) = [r for r in records if r.name == "curvature/sharpness"]
    assert sharpness.status == "not_converged"
    (stability,) = [r for r in records if r.name == "curvature/stability"]
    assert stability.status == "not_converged"
    third = next(r for r in records if r.name == "curvature/eigenvalue/3")
    assert third.stderr is not None
    assert "5 products" in third.note


class Quadratic(nn.Module):
    """L = sum d x^2 / 2: curvature d, exactly."""

    def __init__(self, *d: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(d)))
        self.register_buffer("d", torch.tensor(d))

    def forward(self) -> Tensor:
        return (self.d * self.x.square()).sum() / 2


def quadratic_loss(model: nn.Module, batch: Any) -> Tensor:
    return model()


OPTIMIZERS: dict[str, tuple[Make, float]] = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr=lr), 2.0),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 3.8),
    "dampened": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9), 38.0),
    "nesterov": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 3.8 / 2.8),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("ratio", "stable"), [(0.97, True), (1.03, False)])
def test_a_quadratic_diverges_exactly_when_the_stability_ratio_exceeds_one(
    name: str, ratio: float, stable: bool
) -> None:
    make, c = OPTIMIZERS[name]
    lr = ratio * c / 5.0
    records, model = run(
        [Curvature(k=1)], lambda p: make(p, lr), model=Quadratic(5.0, 1.0), loss=quadratic_loss,
        batch=torch.ones(1), steps=400, schedule=eq.at([0]),
    )  # fmt: skip
    assert value(records, "curvature/stability", 0) == pytest.approx(ratio, rel=1e-4)
    assert (float(model.x.detach().abs().max()) < 1.0) == stable


def test_adaptive_optimizers_are_measured_in_their_own_metric() -> None:
    for make, c, power in (
        (lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99)), 38.0, "exp_avg_sq"),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), 38.0, "exp_avg_sq"),
        (lambda p: torch.optim.RMSprop(p, lr=0.01), 2.0, "square_avg"),
        (lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True), 2.0, "square_avg"),
        (lambda p: torch.optim.Adagrad(p, lr=0.01), 2.0, "sum"),
    ):
        kept = Kept(make)
        records, _ = run([Curvature(k=1, tol=1e-8)], kept)
        optimizer, step = kept.optimizer, 2
        states = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
        second = optimizer.param_groups[0].get("betas", (0, 0))[1]
        squares = [
            (s[power] - s.get("grad_avg", torch.zeros(1)).square()).reshape(-1)
            / (1 - second ** float(s["step"]) if second else 1)
            for s in states
        ]
        p = torch.cat(squares).sqrt() + optimizer.param_groups[0]["eps"]
        _, h, _ = dense(step, make)
        felt = h / p.sqrt()[:, None] / p.sqrt()[None]
        expected = float(torch.linalg.eigvalsh(felt)[-1]) * 0.01 / c
        assert value(records, "curvature/stability", step) == pytest.approx(expected, rel=1e-5)


def test_parameter_groups_with_their_own_rates_share_one_ratio() -> None:
    def grouped(params: Any) -> torch.optim.Optimizer:
        first, *rest = list(params)
        return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": rest}], lr=0.1)

    records, _ = run([Curvature(k=1, tol=1e-8)], grouped, steps=1)
    _, h, model = dense(0, sgd)
    rates = torch.full((h.shape[0],), 0.1, dtype=torch.float64)
    rates[: model[0].weight.numel()] = 0.5
    felt = h * rates.sqrt()[:, None] * rates.sqrt()[None]
    expected = float(torch.linalg.eigvalsh(felt)[-1]) / 2
    assert value(records, "curvature/stability") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [sgd, lambda p: torch.optim.Adam(p, lr=0.01)])
def test_the_stability_of_steps_does_not_depend_on_where_a_gradient_is_divided(make: Any) -> None:
    """A sum whose gradient the loop divides by the samples trains as the mean does."""

    def trained(reduction: str) -> list[Record]:
        torch.manual_seed(0)
        model, batch, sink = mlp(6, 8, 3), blobs(), MemorySink()
        optimizer = make(model.parameters())
        probes = [Curvature(k=1, smallest=False)]
        loss = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction)
        with eq.attach(
            model, optimizer, probes=probes, sinks=[sink], schedule=1, budget=None
        ) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                monitor.loss(loss)(model, batch).backward()
                for p in model.parameters():
                    assert p.grad is not None
                    p.grad.div_(len(batch[0]) if reduction == "sum" else 1)
                optimizer.step()
        return [r for r in sink.records if r.name == "curvature/stability" and r.status == "ok"]

    of_mean, of_sum = trained("mean"), trained("sum")
    assert len(of_mean) == len(of_sum) >= 2
    for one, other in zip(of_mean, of_sum, strict=True):
        assert other.value == pytest.approx(one.value, rel=0.02)
        assert "times" not in one.facts
        assert other.facts["times"] == pytest.approx(1 / len(blobs()[0]), rel=1e-3)


def test_an_optimizer_without_a_known_threshold_is_not_applicable() -> None:
    records, _ = run([Curvature(k=1)], lambda p: torch.optim.Adamax(p, lr=0.01), steps=1)
    (record,) = [r for r in records if r.name == "curvature/stability"]
    assert record.status == "not_applicable"
    assert "Adamax: its stability threshold is not known" in record.note


def test_a_matrix_optimizer_is_refused_by_name() -> None:
    class Muon(torch.optim.SGD):
        pass

    records, _ = run([Curvature(k=1)], lambda p: Muon(p, lr=0.01), steps=1)
    (record,) = [r for r in records if r.name == "curvature/stability"]
    assert record.status == "not_applicable"
    assert "Muon: it orthogonalises whole matrices" in record.note


def test_a_rule_of_the_users_own_gives_the_metric() -> None:
    """Scale 0.02 everywhere is the rule of SGD with lr 0.04."""
    rule = lambda snapshot: {n: torch.full_like(p, 0.02) for n, p in snapshot.before.items()}
    mine = Curvature(k=1, tol=1e-8, stability_scale=rule)
    records, _ = run([mine], lambda p: torch.optim.Adamax(p, lr=0.01), steps=1)
    expected = 0.02 * value(records, "curvature/sharpness")
    assert value(records, "curvature/stability") == pytest.approx(expected, rel=1e-6)


def test_gauss_newton_explains_all_of_a_linear_model_and_not_all_of_a_deep_one() -> None:
    linear, _ = run([Curvature(k=1, split=True, tol=1e-6)], model=mlp(6, 3), steps=1)
    assert value(linear, "curvature/gauss_newton_share") == pytest.approx(1.0, abs=1e-6)
    deep, _ = run([Curvature(k=1, split=True, tol=1e-6)], steps=1)
    share = value(deep, "curvature/gauss_newton_share")
    assert 0 < share < 1.5
    assert abs(share - 1) > 1e-4


def hinge(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return F.relu(batch[2] - batch[1] * model(batch[0])).mean()


def test_a_loss_that_is_flat_at_first_has_curvature_later() -> None:
    x = blobs()[0].double()
    margin = torch.full((64, 1), -5.0, dtype=torch.float64)  # met: the loss is 0
    batch, steps = (x, x.sum(1, keepdim=True).sign(), margin), range(6)
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 1, activation=nn.Tanh).double(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    how: Any = {"schedule": 1, "budget": None, "sinks": [sink], "on_error": "raise"}
    with eq.attach(model, optimizer, probes=[Curvature(k=1, split=True)], **how) as monitor:
        watched = monitor.loss(hinge)
        for step in steps:
            margin.fill_(-5.0 if step < 4 else 1.0)
            optimizer.zero_grad()
            watched(model, batch).backward()
            optimizer.step()
    sharpness = [r for r in sink.records if r.name == "curvature/sharpness"]
    assert [(r.step, r.status) for r in sharpness] == [(k, "ok") for k in steps]
    assert [r.value > 0.0 for r in sharpness] == [k >= 4 for k in steps]
    shares = [r for r in sink.records if r.name == "curvature/gauss_newton_share"]
    assert [r.status == "ok" for r in shares] == [k >= 4 for k in steps]
    assert "curvature is 0" in shares[0].note


def test_a_share_that_cannot_be_computed_is_said_by_its_own_name() -> None:
    def each(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        one = lambda x, y: F.cross_entropy(model(x[None]), y[None])
        return torch.vmap(one)(*batch).mean()

    records, _ = run([Curvature(k=1, split=True)], loss=each, steps=1)
    status = {r.name: r.status for r in records}
    assert status["curvature/sharpness"] == "ok"
    assert status["curvature/gauss_newton_share"] == "not_applicable"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "not_applicable"), (FloatingPointError, "non_finite"), (TypeError, None)],
)
def test_what_is_secondary_fails_by_itself_and_other_errors_go_on(
    error: type[Exception], status: str | None
) -> None:
    def rows() -> Iterator[Measurement]:
        yield Measurement("first", 1.0)
        raise error("why")

    if status is None:
        with pytest.raises(error, match="why"):
            list(secondary(rows(), "first", "second"))
        return
    first, second = secondary(rows(), "first", "second")
    assert (first.value, first.status) == (1.0, "ok")
    assert (second.quantity, second.status, second.note) == ("second", status, "why")


def test_a_probe_that_ends_early_says_its_number_once() -> None:
    class Broken(Curvature):
        def measure(self, *given: Any) -> Iterator[Measurement]:
            yield Measurement("sharpness", 1.0)
            raise ArithmeticError("later")

    model, sink = mlp(6, 3).double(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    how: Any = {"schedule": 1, "budget": None, "sinks": [sink]}
    x, y = blobs()
    with eq.attach(model, optimizer, probes=[Broken()], **how) as monitor:
        monitor.loss(cross_entropy)(model, (x.double(), y)).backward()
        with pytest.warns(RuntimeWarning, match="later"):
            optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/sharpness"]
    assert (row.value, row.status) == (1.0, "ok")
    assert "other numbers are missing: ArithmeticError: later" in row.note


def test_symmetry_directions_hold_little_of_the_sharp_space() -> None:
    records, _ = run([Curvature(k=3, tol=1e-8)], model=mlp(6, 8, 3), steps=1)
    assert value(records, "curvature/symmetry_overlap/translation") < 1e-10
    assert 0 <= value(records, "curvature/symmetry_overlap/rescale") < 0.5


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0])
def test_the_turn_of_a_space_is_its_largest_principal_angle(degrees: float) -> None:
    """Two planes that share one direction; the other turned by so much."""
    unit, turned = torch.eye(5, dtype=torch.float64), math.radians(degrees)
    moved = math.cos(turned) * unit[1] + math.sin(turned) * unit[2]
    (found,) = turn([{"x": unit[0]}, {"x": moved}], [{"x": unit[0]}, {"x": unit[1]}], "ok")
    assert (found.unit, found.value) == ("degrees", pytest.approx(degrees, abs=1e-5))


def test_the_top_space_turns_little_in_a_small_step_and_momentum_is_measured() -> None:
    slow = lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9)
    records, _ = run([Curvature(k=1, tol=1e-8, angles=True)], slow)
    assert value(records, "curvature/turn", 1) < 1.0
    assert not [r for r in records if r.name == "curvature/turn" and r.step == 0]
    assert 0 < value(records, "curvature/momentum_overlap", 2) <= 1


def test_searches_that_go_on_from_the_last_are_right_cheaper_and_confirmed_at_times() -> None:
    found = {}
    for reuse in (True, False):
        kind: Reuse = "always" if reuse else "never"
        records, _ = run([Curvature(k=3, tol=1e-3, reuse=kind)], steps=9)
        found[reuse] = [r for r in records if r.name == "curvature/sharpness"]
        for record in found[reuse][::4]:
            _, h, _ = dense(record.step, sgd)
            exact = torch.linalg.eigvalsh(h)
            assert record.value == pytest.approx(float(exact[-1]), rel=1e-5)
            third = value(records, "curvature/eigenvalue/3", record.step)
            assert third == pytest.approx(float(exact[-3]), rel=1e-3)
    confirmed = [r.facts.flag("confirmed") for r in found[True]]
    assert confirmed == [True, False, False, False, True, False, False, False, True]
    assert all(r.facts.flag("confirmed") for r in found[False])
    spent = {reuse: sum(r.matvecs or 0 for r in rows[1:]) for reuse, rows in found.items()}
    assert spent[True] < 0.8 * spent[False]


def test_tracking_stays_within_its_bound_of_the_dense_value() -> None:
    records, _ = run([Tracking()], steps=30)
    tracked = [r for r in records if r.name == "tracking/sharpness"]
    spent = [r.matvecs or 0 for r in tracked]
    for record in tracked[::5]:
        _, h, _ = dense(record.step, sgd)
        error = float(torch.linalg.eigvalsh(h)[-1]) - record.value
        assert error > -1e-9
        assert record.status != "ok" or error <= max(record.stderr or 0.0, 5e-3 * record.value)
    assert sum(spent) / len(spent) < 8


def test_spectrum_agrees_with_the_dense_hessian_within_its_errors() -> None:
    records, _ = run([Spectrum(matvecs=48, layers=True)], steps=1)
    _, h, _ = dense(0, sgd)
    for name, expected in (
        ("trace", float(h.trace())),
        ("frobenius_norm", float(h.norm())),
        ("effective_rank", float(h.trace() ** 2 / h.square().sum())),
    ):
        (record,) = [r for r in records if r.name == f"spectrum/{name}"]
        assert abs(record.value - expected) <= 5 * (record.stderr or 0) + 1e-9 * abs(expected)
    layers = [r for r in records if r.name.startswith("spectrum/trace/")]
    assert [r.name for r in layers] == ["spectrum/trace/0", "spectrum/trace/2"]
    total = sum(r.value for r in layers)
    assert total == pytest.approx(float(h.trace()), rel=0.2)
    assert not any(math.isnan(r.value) for r in layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curvature(k=0), "curvature needs k >= 1"),
        (lambda: Curvature(tol=0.0), "tol > 0"),
        (lambda: Curvature(k=3, rows=5), "curvature needs rows >= 6 for k=3, got 5"),
        (lambda: Curvature(k=1, rows=2), "curvature needs rows >= 4 for k=1, got 2"),
        (lambda: Tracking(rtol=2.0), "0 < rtol < 1"),
        (lambda: Tracking(rows=2), r"rows must be >= k \+ 2 = 3, got 2"),
        (lambda: Spectrum(rows=1), "spectrum needs rows >= 2, got 1"),
        (lambda: Spectrum(probes=1), "probes >= 2"),
    ],
)
def test_bad_options_are_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_of_one_or_two_parameters_has_all_its_eigenvalues(size: int) -> None:
    model = Quadratic(*[5.0, 1.0][:size])
    records, _ = run([Curvature(k=5)], model=model, loss=quadratic_loss, batch=torch.ones(1))
    assert value(records, "curvature/sharpness") == pytest.approx(5.0)
    if size == 2:
        assert value(records, "curvature/smallest") == pytest.approx(1.0)


def test_rounding_that_the_metric_of_adam_amplifies_is_in_the_residual_and_no_failure() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sink, x, y = MemorySink(), torch.randn(32, 1, 4, 4), torch.randint(0, 3, (32,))
    criterion = nn.CrossEntropyLoss()
    probes = [Curvature(k=2)]
    with eq.attach(model, optimizer, criterion=criterion, probes=probes, budget=None, sinks=[sink]):
        for _ in range(5):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    rows = [r for r in sink.records if r.name == "curvature/stability"]
    assert [r.status for r in rows] == ["ok"] * 5
    assert all(r.stderr is not None and 0 < r.stderr < 0.05 * r.value for r in rows)


@pytest.mark.parametrize(
    ("optimizer", "stability"),
    [
        (lambda p: torch.optim.Adam(p, lr=1e-3), []),  # another search, in its metric
        (lambda p: torch.optim.SGD(p, lr=1e-3), ["stability"]),
    ],
)
def test_a_light_measurement_is_the_sharpness_for_less(
    monkeypatch: pytest.MonkeyPatch, optimizer: Make, stability: list[str]
) -> None:
    probe, seen = Curvature(k=3, tol=1e-3), list[Any]()
    measured = Curvature.measure

    def noting(self: Curvature, snapshot: Any, reference: Any, rng: Any) -> Any:
        light = replace(snapshot, light=len(seen) != 1)
        rows = list(measured(self, light, reference, rng))
        whole = measured(self, snapshot, TopSpace(), rng)
        seen.append((rows, next(r for r in whole if r.quantity == "sharpness")))
        return rows

    monkeypatch.setattr(Curvature, "measure", noting)
    run([probe], optimizer, steps=4)
    (cold, _), (all_of_it, _), *later = seen
    assert {r.quantity for r in all_of_it} > {"sharpness", "stability", "smallest"}
    for rows, whole in ((cold, seen[0][1]), *later):
        own = [r for r in rows if r.quantity != "self_test"]
        assert [r.quantity for r in own] == ["sharpness", *stability]
        assert own[0].value == pytest.approx(whole.value, rel=2e-3)
        assert own[0].facts["confirmed"] is False
        assert own[0].matvecs < 0.7 * whole.matvecs


@pytest.mark.parametrize("whole", [0, -1])  # which measurement is, if any
def test_a_light_measurement_sees_what_grew_orthogonal_to_all_that_is_known(
    monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    model, seen = (
        Quadratic(8.0, 6.0, 5.0, 4.0, 3.0, *torch.linspace(0, 1, 300).tolist()),
        list[Any](),
    )
    measured = Curvature.measure

    def lightly(self: Curvature, snapshot: Any, reference: Any, rng: Any) -> Any:
        rows = list(measured(self, replace(snapshot, light=len(seen) != whole), reference, rng))
        seen.append(next(r for r in rows if r.quantity == "sharpness"))
        return rows

    monkeypatch.setattr(Curvature, "measure", lightly)

    def growing(params: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=1e-6)
        optimizer.register_step_post_hook(lambda *_: model.d[100].fill_(12.0))
        return optimizer

    run([Curvature(k=3)], growing, model=model, loss=quadratic_loss, batch=torch.ones(1), steps=5)
    assert [r.value for r in seen] == pytest.approx([8.0, *[12.0] * 4], rel=2e-3)


@pytest.mark.parametrize("light", [True, False])
def test_what_a_search_lacks_when_its_time_is_up_is_said_and_found_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, light: bool
) -> None:
    rows, measured = list[list[Any]](), Curvature.measure

    def shortly(self: Curvature, snapshot: Any, reference: Any, rng: Any) -> Any:
        first = not rows
        given = replace(snapshot, light=light and first, seconds=0.0 if first else math.inf)
        rows.append(list(measured(self, given, reference, rng)))
        return rows[-1]

    monkeypatch.setattr(Curvature, "measure", shortly)
    values = (9.0, 8.5, *torch.linspace(0, 8, 200).tolist())
    model = Quadratic(*values)
    run(
        [Curvature(k=2)],
        lambda p: torch.optim.SGD(p, lr=1e-6),
        model=model,
        loss=quadratic_loss,
        batch=torch.ones(1),
        steps=2,
    )
    short, whole = ([r for r in now if r.quantity in EIGEN] for now in rows)
    assert all(r.status == "not_converged" and r.stderr for r in short)
    assert short[-1].value <= 9.0 + 1e-4, "from below"
    assert all(r.status == "ok" for r in whole)
    assert {r.quantity + r.target: r.value for r in whole} == pytest.approx(
        {"eigenvalue1": 9.0, "eigenvalue2": 8.5, "smallest": 0.0, "sharpness": 9.0}, abs=0.03
    )
    assert whole[-1].facts["confirmed"] is True


def test_a_search_is_bounded_in_time_where_there_is_a_budget() -> None:
    seen = list[float]()

    class Timed(Probe):
        name, headline, mode = "timed", "number", "train"

        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            seen.append(snapshot.seconds)
            yield Measurement("number", 1.0)

    for budget in (None, 0.05):
        run([Timed()], steps=1, budget=budget)
    assert seen == [math.inf, AT_MOST]


def test_light_steps_of_a_schedule_have_the_sharpness_alone() -> None:
    probe = Scheduled(probe=Curvature(k=2), schedule=every(4), light=every(2))
    records, _ = run([probe], steps=8, schedule=None)
    steps = {n: [r.step for r in records if r.name == n] for n in ("curvature/sharpness", GRADIENT)}
    assert steps == {"curvature/sharpness": [0, 2, 4, 6], GRADIENT: [0, 4]}
