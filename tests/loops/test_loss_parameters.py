"""Parameters of the loss itself are part of theta where the optimizer trains them."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.loss_parameters import ExchangedParameters, LossParameters
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe
from tests.neutrality.watch import digest

LR = 0.05


class Two(nn.Module):
    """Two outputs of one trunk: a number and three scores."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(x))
        return self.a(h).squeeze(1), self.b(h)


class Uncertainty(nn.Module):
    """Weights of the two losses, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, out: Any, targets: Any) -> Tensor:
        parts = torch.stack([F.mse_loss(out[0], targets[0]), F.cross_entropy(out[1], targets[1])])
        return ((-self.s).exp() * parts + self.s).sum()


def problem() -> tuple[nn.Module, nn.Module, Any]:
    torch.manual_seed(0)
    batch = (torch.randn(32, 6), (3 * torch.randn(32), torch.randint(0, 3, (32,))))
    return Two(), Uncertainty(), batch


def hessian(start: Any, evaluate: Callable[[Any], Tensor], among: list[str]) -> Tensor:
    """Dense float64 Hessian of `evaluate(tensors)` over the entries named in `among`."""
    sizes = [start[n].numel() for n in among]

    def flat(x: Tensor) -> Tensor:
        parts = [p.view_as(start[n]) for n, p in zip(among, x.split(sizes), strict=True)]
        return evaluate({**start, **dict(zip(among, parts, strict=True))})

    x = torch.cat([start[n].reshape(-1) for n in among])
    return torch.func.hessian(flat)(x)  # type: ignore[no-any-return]


def joint(model: nn.Module, criterion: nn.Module, batch: Any) -> tuple[Any, Any]:
    """theta_t in float64, and the loss as a function of it, by torch.func alone."""
    start = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    start["s"] = criterion.s.detach().double().clone()  # type: ignore[operator, union-attr]
    x, (y, labels) = batch

    def evaluate(p: Any) -> Tensor:
        h = torch.tanh(F.linear(x.double(), p["trunk.weight"], p["trunk.bias"]))
        a = F.linear(h, p["a.weight"], p["a.bias"]).squeeze(1)
        b = F.linear(h, p["b.weight"], p["b.bias"])
        parts = torch.stack([F.mse_loss(a, y.double()), F.cross_entropy(b, labels)])
        return ((-p["s"]).exp() * parts + p["s"]).sum()

    return start, evaluate


def surfaces(how: str, model: Any, criterion: Any, options: dict[str, Any]) -> Any:
    """A function that evaluates the loss as a loop of this kind does, once attached."""
    loss_fn: Any = lambda m, b: criterion(m(b[0]), b[1])
    if how == "criterion":
        options["criterion"] = criterion
        return lambda monitor: loss_fn
    if how == "decorator":
        return lambda monitor: monitor.loss(loss_fn) if monitor else loss_fn
    options["loss_fn"] = loss_fn
    if how == "probe batch":
        options["probe_batch"] = problem()[2]
        return lambda monitor: loss_fn

    def given(monitor: Any) -> Any:
        def evaluate(m: Any, b: Any) -> Tensor:
            if monitor:
                monitor.observe(b)
            return loss_fn(m, b)  # type: ignore[no-any-return]

        return evaluate

    return given


def train(how: str, trained: str, watched: bool) -> tuple[MemorySink, list[Tensor], str]:
    """Two steps; the records, the true top eigenvalue before each, and a digest of the end."""
    model, criterion, batch = problem()
    own = torch.optim.SGD(model.parameters(), lr=LR)
    others = torch.optim.SGD(criterion.parameters(), lr=LR)
    if trained == "with the model":
        own.add_param_group({"params": list(criterion.parameters())})
    options: dict[str, Any] = {}
    make, sink, tops = surfaces(how, model, criterion, options), MemorySink(), []
    monitor = None
    if watched:
        monitor = eq.attach(
            model, own, probes=[Curvature(k=1, tol=1e-3)], schedule=1, budget=None, sinks=[sink],
            on_error="raise", **options,
        )  # fmt: skip
    loss_fn = make(monitor)
    for _ in range(2):
        start, evaluate = joint(model, criterion, batch)
        among = [n for n in start if trained == "with the model" or n != "s"]
        tops.append(torch.linalg.eigvalsh(hessian(start, evaluate, among))[-1])
        own.zero_grad(), others.zero_grad()
        loss_fn(model, batch).backward()
        if trained == "by another optimizer before":
            others.step()
        own.step()
        if trained == "by another optimizer after":
            others.step()
    if monitor:
        monitor.close()
    state = (dict(model.state_dict()), dict(criterion.state_dict()), criterion.s.grad)
    return sink, tops, digest(*state)


def found(sink: MemorySink, name: str) -> list[float]:
    return [r.value for r in sink.records if r.name == name]


@pytest.mark.parametrize("how", ["criterion", "decorator", "loss_fn", "probe batch"])
def test_curvature_is_that_of_model_and_loss_parameters_where_the_optimizer_has_both(
    how: str,
) -> None:
    sink, tops, trail = train(how, "with the model", watched=True)
    assert found(sink, "curvature/sharpness") == pytest.approx([float(t) for t in tops], rel=1e-4)
    checked = (
        [] if how == "probe batch" else [1.0] * len(tops)
    )  # no loss of the training's is known
    assert found(sink, "monitor/closure_grad_cos") == pytest.approx(checked)
    (event,) = [e for e in sink.events if "parameters of its own" in e[3]]
    name = "criterion.s" if how == "criterion" else "loss.s"
    assert name in event[3]
    assert event[1] == "info"
    assert trail == train(how, "with the model", watched=False)[2]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("how", ["criterion", "decorator"])
def test_loss_parameters_that_another_optimizer_trains_are_held_at_their_step(
    how: str, order: str
) -> None:
    trained = f"by another optimizer {order}"
    sink, tops, trail = train(how, trained, watched=True)
    assert found(sink, "curvature/sharpness") == pytest.approx([float(t) for t in tops], rel=1e-4)
    (event,) = [e for e in sink.events if "no attached optimizer trains" in e[3]]
    assert "held at their values" in event[3]
    assert trail == train(how, trained, watched=False)[2]


def test_the_model_alone_has_another_curvature() -> None:
    model, criterion, batch = problem()
    start, evaluate = joint(model, criterion, batch)
    both = torch.linalg.eigvalsh(hessian(start, evaluate, list(start)))[-1]
    alone = torch.linalg.eigvalsh(hessian(start, evaluate, [n for n in start if n != "s"]))[-1]
    assert abs(float(both / alone) - 1) > 0.01
    moved = {**start, "s": start["s"] + LR}
    later = torch.linalg.eigvalsh(hessian(moved, evaluate, [n for n in start if n != "s"]))[-1]
    assert abs(float(later / alone) - 1) > 0.01


class Compared(Probe):
    """The replayed gradient against the one that the optimizer was given."""

    name = "compared"
    headline = "difference"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Any:
        replayed = replayed_gradient(snapshot.training, snapshot.before)
        assert replayed.keys() == snapshot.gradient.keys() == snapshot.update.keys()
        for name, given in snapshot.gradient.items():
            torch.testing.assert_close(replayed[name], given)
        yield Measurement("difference", 0.0)
        yield Measurement("names", float(len(snapshot.before)), note=" ".join(snapshot.before))


temperature = nn.Parameter(torch.tensor(0.5))


def test_a_learned_temperature_without_a_module_is_part_of_theta() -> None:
    torch.manual_seed(0)
    model, sink = nn.Linear(6, 3), MemorySink()
    batch = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
    with torch.no_grad():
        temperature.fill_(0.5)
    optimizer = torch.optim.Adam([*model.parameters(), temperature], lr=0.1)
    monitor = eq.attach(
        model, optimizer, probes=[Compared()], schedule=1, budget=None, sinks=[sink],
        on_error="raise",
    )  # fmt: skip

    @monitor.loss
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(torch.stack([model(batch[0]) * temperature.exp()])[0], batch[1])

    for _ in range(3):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    monitor.close()
    names = [r.note for r in sink.records if r.name == "compared/names"]
    assert names == ["weight bias loss.temperature"] * 3


def test_every_question_of_the_standard_preset_is_answered_with_loss_parameters() -> None:
    model, criterion, batch = problem()
    optimizer, sink = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=LR), None
    sink = MemorySink()
    monitor = eq.attach(
        model, optimizer, probes="standard", criterion=criterion, schedule=1, budget=None,
        sinks=[sink], on_error="raise",
    )  # fmt: skip
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()
    monitor.close()
    assert not [r for r in sink.records if r.status == "failed"]


def test_parameters_of_a_loss_that_another_model_uses_are_none_of_this_one() -> None:
    model, criterion, batch = problem()
    stray, sink = nn.Linear(3, 3), MemorySink()
    optimizer = torch.optim.SGD([*model.parameters(), *stray.parameters()], lr=LR)
    criterion.requires_grad_(False)
    monitor = eq.attach(
        model, optimizer, probes=[Compared()], criterion=criterion, schedule=1, budget=None,
        sinks=[sink], on_error="raise",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()
    monitor.close()
    (names,) = [r.note for r in sink.records if r.name == "compared/names"]
    assert names.split() == [n for n, _ in model.named_parameters()]
    assert not sink.events


def test_tensors_are_exchanged_wherever_an_operation_takes_them_and_never_written() -> None:
    live, other = nn.Parameter(torch.ones(2)), torch.full((2,), 3.0, requires_grad=True)
    with ExchangedParameters({id(live): other}):
        total = (
            torch.stack([live, live * 2]).sum() + live.sum() + torch.dot(input=live, tensor=live)
        )
        (slope,) = torch.autograd.grad(total, live)
        with torch.no_grad():
            live.zero_()
    assert float(total.detach()) == 6 + 12 + 6 + 18
    torch.testing.assert_close(slope, torch.full((2,), 10.0))
    assert live.tolist() == [1.0, 1.0]
    assert other.tolist() == [0.0, 0.0]


def test_what_is_not_among_the_parameters_counts_as_it_was_held() -> None:
    live = nn.Parameter(torch.ones(2))
    beside = LossParameters(live={"s": live}, held={"s": torch.full((2,), 2.0)})
    with beside.swapped({}, lambda t: t.double()):
        value = live + 0
    assert value.dtype == torch.float64
    assert value.tolist() == [2.0, 2.0]
