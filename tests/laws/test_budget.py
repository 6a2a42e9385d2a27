"""The drift budget closes for every optimizer, and its terms are what their names say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import CAUSES, Conservation
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd with decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov with decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "maximising": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.second, self.third = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


def measured(
    make: Callable[[Any], torch.optim.Optimizer],
    steps: int = 12,
    schedule: Any = 1,
    between: Callable[[Net, int], None] = lambda model, step: None,
    after: Callable[[Net, int], None] = lambda model, step: None,
    named: bool = False,
) -> list[Record]:
    """Records of a training; `between` runs before each optimizer step, `after` after it."""
    torch.manual_seed(0)
    model, sink = Net(), MemorySink()
    optimizer = make(model if named else model.parameters())
    ascent = bool(optimizer.param_groups[0].get("maximize"))
    probes = [Conservation()]
    with eq.attach(
        model, optimizer, probes=probes, schedule=schedule, budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        sign = -1.0 if ascent else 1.0
        loss_fn = monitor.loss(lambda m, b: sign * nn.functional.cross_entropy(m(b[0]), b[1]))
        for step in range(steps):
            model.zero_grad()
            loss_fn(model, blobs()).backward()
            between(model, step)
            optimizer.step()
            after(model, step)
    return sink.records


def value(records: list[Record], name: str, step: int = -1) -> float:
    series = [r for r in records if r.name == f"conservation/{name}"]
    return series[step].value


FAMILIES = ("rescale", "scale", "translation")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_budget_closes_in_float32(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        closures = [r for r in records if r.name == f"conservation/closure/{family}"]
        assert len(closures) == 12
        assert max(r.value for r in closures) < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_terms_add_up_to_the_drift_of_the_step(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        total = sum(value(records, f"{cause}/{family}") for cause in CAUSES)
        assert total == pytest.approx(value(records, f"step_drift/{family}"), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shares_measured_at_every_step_explain_the_whole_drift(name: str) -> None:
    records = measured(OPTIMIZERS[name])
    for family in FAMILIES:
        if value(records, f"drift/{family}") > 1e-6:
            assert abs(value(records, f"share_unmeasured/{family}")) < 1e-3


def test_the_symmetry_term_is_rounding_for_exact_symmetries() -> None:
    records = measured(OPTIMIZERS["sgd with decay"])
    for family in ("rescale", "translation"):
        assert abs(value(records, f"symmetry/{family}")) < 1e-7
    decay = value(records, "decay/rescale")
    assert abs(decay) > 1e-5


def test_plain_sgd_has_no_optimizer_term_and_momentum_has_one() -> None:
    plain, momentum = measured(OPTIMIZERS["sgd"]), measured(OPTIMIZERS["momentum"])
    assert abs(value(plain, "optimizer/rescale")) < 1e-7
    assert abs(value(momentum, "optimizer/rescale")) > 1e-4


def test_without_decay_the_decay_term_is_exactly_zero() -> None:
    records = measured(OPTIMIZERS["adam"])
    assert all(value(records, f"decay/{family}") == 0 for family in FAMILIES)


def test_drift_of_plain_sgd_is_second_order_in_the_learning_rate() -> None:
    """One step: Q drifts by eta^2 <g, A g> / 2 for quadratic charges and not at all for linear."""
    drifts = [
        value(measured(lambda p, lr=lr: torch.optim.SGD(p, lr=lr), steps=1), "drift/rescale")
        for lr in (0.1, 0.05)
    ]
    assert drifts[0] / drifts[1] == pytest.approx(4.0, rel=1e-3)


def test_sparse_measuring_reports_what_it_did_not_see() -> None:
    records = measured(OPTIMIZERS["momentum"], steps=31, schedule=10)
    total = sum(value(records, f"share_{cause}/rescale") for cause in (*CAUSES, "unmeasured"))
    assert total == pytest.approx(1.0, abs=1e-9)
    assert abs(value(records, "share_unmeasured/rescale")) > 1e-4


def test_measured_steps_stand_for_all_steps_since_the_last_one() -> None:
    """Slow training under decay: 4 of 31 steps are measured, and yet decay explains the drift."""
    decaying = lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1)
    records = measured(decaying, steps=31, schedule=10)
    for family in FAMILIES:
        assert value(records, f"share_decay/{family}") == pytest.approx(1.0, abs=0.02)
        assert abs(value(records, f"share_unmeasured/{family}")) < 0.02


def test_an_optimizer_without_learning_rate_has_drift_but_no_budget() -> None:
    class Halving(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(0.9)

    records = measured(Halving, steps=2)
    assert value(records, "drift/rescale") > 0
    closure = [r for r in records if r.name == "conservation/closure/rescale"][-1]
    assert closure.status == "not_applicable"
    assert "learning rate" in closure.note


def closed(records: list[Record]) -> None:
    """The budget is exact: its terms add up to the drift and nothing is left since the start."""
    for family in FAMILIES:
        total = sum(value(records, f"{cause}/{family}") for cause in CAUSES)
        assert total == pytest.approx(value(records, f"step_drift/{family}"), rel=1e-6, abs=1e-12)
        closures = [r for r in records if r.name == f"conservation/closure/{family}"]
        assert all(r.verdict == "holds" for r in closures)


def test_clipping_is_part_of_the_gradient_that_the_optimizer_was_given() -> None:
    records = measured(
        OPTIMIZERS["sgd with decay"],
        between=lambda m, _: nn.utils.clip_grad_norm_(m.parameters(), 0.1) and None,
    )
    closed(records)
    assert abs(value(records, "symmetry/rescale")) < 1e-7
    assert abs(value(records, "optimizer/rescale")) < 1e-7


def groups(model: Net) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    kinds = [{"params": weights, "weight_decay": 0.05}, {"params": rest, "lr": 0.02}]
    return torch.optim.SGD(kinds, lr=0.1)


def test_groups_with_rates_and_decays_of_their_own_have_an_exact_budget() -> None:
    records = measured(groups, named=True)
    closed(records)
    assert all(abs(value(records, f"symmetry/{f}")) < 1e-7 for f in ("rescale", "translation"))
    assert abs(value(records, "learning_rates/rescale")) > 1e-6, "biases learn at another rate"
    assert abs(value(records, "optimizer/rescale")) < 1e-8, "it is plain SGD"
    assert abs(value(records, "decay/rescale")) > 1e-5


def test_a_parameter_in_nobodys_group_is_moved_by_nothing_in_this_step() -> None:
    """Two optimizers: the monitor watches one, the other steps in between and is unmeasured."""
    other: dict[str, torch.optim.Optimizer] = {}

    def first(model: Net) -> torch.optim.Optimizer:
        other["it"] = torch.optim.SGD(model.second.parameters(), lr=0.05)
        kept = [p for n, p in model.named_parameters() if not n.startswith("second")]
        return torch.optim.SGD(kept, lr=0.1)

    with pytest.warns(RuntimeWarning, match="2 trainable parameters are in no attached optimizer"):
        records = measured(first, named=True, after=lambda m, _: other["it"].step())
    total = sum(value(records, f"{cause}/rescale") for cause in CAUSES)
    assert total == pytest.approx(value(records, "step_drift/rescale"), rel=1e-6)
    gaps = [r for r in records if r.name == "conservation/closure/rescale"]
    assert gaps[0].verdict == "holds"
    assert gaps[-1].verdict == "violated", "something moved parameters outside of the step"
    with pytest.warns(RuntimeWarning, match="second.weight, second.bias"):
        alone = measured(first, named=True)
    closed(alone)


def test_a_skipped_step_moves_no_charge_and_spoils_no_later_budget() -> None:
    """Loss scaling that overflowed: the gradient is not finite and the optimizer does nothing."""

    class Scaled(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1, "weight_decay": 0.01})

        def step(self, closure: Any = None) -> None:
            (group,) = self.param_groups
            if all(bool(p.grad.isfinite().all()) for p in group["params"]):
                for p in group["params"]:
                    p.data.sub_(0.1 * (p.grad + 0.01 * p.data))

    def overflow(model: Net, step: int) -> None:
        if step == 3:
            model.first.weight.grad[0, 0] = float("inf")

    records = measured(Scaled, between=overflow)
    assert value(records, "step_drift/rescale", 3) == 0
    assert all(value(records, f"{cause}/rescale", 3) == 0 for cause in CAUSES)
    assert sum(r.name == "conservation/first_order/rescale" for r in records) == 11
    closed(records)
    assert abs(value(records, "share_unmeasured/rescale")) < 1e-3


def test_a_gradient_that_is_not_finite_and_moves_parameters_has_no_budget() -> None:
    def overflow(model: Net, step: int) -> None:
        if step == 2:
            model.third.bias.grad[0] = float("nan")

    with pytest.warns(RuntimeWarning, match="third.bias"):
        records = measured(lambda p: torch.optim.SGD([*p][:-1], lr=0.1), steps=4, between=overflow)
    gap = [r for r in records if r.name == "conservation/closure/rescale"][2]
    assert gap.status == "not_applicable"
    assert "not finite" in gap.note


def test_a_regulariser_beside_the_loss_breaks_the_first_order_law_of_the_gradient() -> None:
    clean = measured(OPTIMIZERS["sgd"])
    laws = [r for r in clean if r.name.startswith("conservation/first_order/")]
    assert {r.name.rpartition("/")[2] for r in laws} >= {"rescale", "scale", "translation"}
    exact = [r for r in laws if not r.name.endswith("/scale")]  # that has an epsilon
    assert all(r.verdict == "holds" for r in exact)
    assert all(r.verdict == "unresolved" for r in laws if r not in exact)

    def penalty(model: Net, step: int) -> None:
        if step:  # the first one is compared with the replayed gradient, and warned of
            model.second.weight.grad += 0.1 * model.second.weight.detach()

    spoilt = measured(OPTIMIZERS["sgd"], between=penalty)
    assert [r for r in spoilt if r.name == "conservation/first_order/rescale"][-1].verdict == (
        "violated"
    )


def test_vectors_of_charges_and_drift_go_with_their_records() -> None:
    torch.manual_seed(0)
    model, sink = Net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[Conservation(growth=0.5)], budget=None, sinks=[sink],
        schedule=1, on_error="raise",
    ) as monitor:  # fmt: skip
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for _ in range(20):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    name = "conservation/unit_drift/rescale"
    kept = {step: values for step, n, values in sink.arrays if n == name}
    assert list(kept) == [0, 1, 2, 3, 5, 8, 12, 18]
    assert kept[18].shape == (7,), "one number a unit"
    rms = next(r.value for r in sink.records if r.name == name and r.step == 18)
    assert rms == pytest.approx(float((kept[18] ** 2).mean() ** 0.5), rel=1e-6)
    worst = [r for r in sink.records if r.name == "conservation/worst_drift/rescale"][18]
    unit = int(worst.note.rpartition(" ")[2])
    assert abs(kept[18]).max() == pytest.approx(worst.value, rel=1e-6)
    assert abs(kept[18]).argmax() == unit
    assert sum(r.name == "conservation/drift/rescale" for r in sink.records) == 20
    with pytest.raises(ValueError, match="growth must be >= 0"):
        Conservation(growth=-1)


def test_the_equilibrium_of_norms_is_measured_under_sgd_with_decay_alone() -> None:
    records = measured(OPTIMIZERS["sgd with decay"], steps=2)
    torch.manual_seed(0)
    model = Net()
    loss = nn.functional.cross_entropy(model(blobs()[0]), blobs()[1])
    rows = [model.first.weight, model.first.bias]
    grads = torch.autograd.grad(loss, rows)
    square = lambda pair: pair[0].detach().square().sum(1) + pair[1].detach().square()
    new = [p.detach() - 0.1 * (g + 0.01 * p.detach()) for p, g in zip(rows, grads, strict=True)]
    ratio = square(new).sqrt() / (0.1 / 0.02 * square(new) * square(grads)) ** 0.25
    found = value(records, "equilibrium/scale", 0)
    assert found == pytest.approx(float(ratio.median()), rel=1e-4)
    assert value(records, "effective_lr/scale", 0) == pytest.approx(
        float((0.1 / square(new)).median()), rel=1e-4
    )
    for name, why in (
        ("sgd", "no weight decay"),
        ("momentum", "no weight decay"),
        ("adamw", "AdamW"),
    ):
        others = [r for r in measured(OPTIMIZERS[name], steps=3) if "equilibrium" in r.name]
        assert [(r.status, why in r.note) for r in others] == [("not_applicable", True)]


def test_two_learning_rates_of_plain_sgd_are_their_own_cause() -> None:
    """Rescale charges drift by (eta_out - eta_in) <K_out, g_out> to first order: no optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters()}]
    optimizer, sink = torch.optim.SGD(groups, lr=0.1), MemorySink()
    with eq.attach(
        model, optimizer, probes=[Conservation()], budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        x = torch.randn(64, 6)
        for _ in range(10):
            optimizer.zero_grad()
            loss(model, (x, x[:, :4].argmax(1))).backward()
            optimizer.step()
    shares = {c: value(sink.records, f"share_{c}/rescale") for c in CAUSES}
    assert shares["learning_rates"] > 0.9
    assert abs(shares["optimizer"]) < 1e-4 and abs(shares["symmetry"]) < 1e-4
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4)


def test_a_law_is_not_said_to_hold_where_no_break_would_show() -> None:
    """A gradient that has become as small as the rounding of its start says nothing."""
    torch.manual_seed(0)
    net, sink = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    options = {"schedule": 1, "budget": None, "sinks": [sink]}
    with eq.attach(net, optimizer, probes=[Conservation()], **options) as monitor:
        loss = monitor.loss(
            lambda model, batch: batch[2] * nn.functional.cross_entropy(model(batch[0]), batch[1])
        )
        for size in (1.0, 1.0, 1e-9, 1e-9):
            optimizer.zero_grad()
            loss(net, (*blobs(), size)).backward()
            optimizer.step()
    laws = [r for r in sink.records if r.name == "conservation/first_order/rescale"]
    assert [r.verdict for r in laws] == ["holds", "holds", "unresolved", "unresolved"]
    assert all(10 * r.floor > 1 for r in laws[2:])
