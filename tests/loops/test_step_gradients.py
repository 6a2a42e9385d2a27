"""The gradient of a step is what the loss gave, whatever the optimizer makes of `.grad` in it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.step import Step
from tests.conftest import blobs, mlp
from tests.neutrality.watch import digest


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Gradients(Probe):
    """Keeps what each snapshot says the gradient is, and what `.grad` is after the step."""

    name = "gradients"
    headline = "given"
    mode = "train"

    def __init__(self, model: nn.Module, evaluates: bool = True) -> None:
        self.given: list[Any] = []
        self.left: list[Any] = []
        self.model = model
        self.evaluates = evaluates  # type: ignore[misc]

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        given = snapshot.gradient
        self.given.append(given and {n: g.clone() for n, g in given.items()})
        named = self.model.named_parameters()
        self.left.append({n: None if p.grad is None else p.grad.clone() for n, p in named})
        yield Measurement("given", 1.0)


class Writing(torch.optim.Optimizer):
    """Gradient descent that writes into `.grad` what it steps along."""

    def __init__(self, params: Any, change: Callable[[nn.Parameter], None]) -> None:
        super().__init__(params, {"lr": 0.1})
        self.change = change

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad
                self.change(p)
                p.add_(gradient if p.grad is None else p.grad, alpha=-0.1)
        return loss


def decay(p: Any) -> None:
    p.grad.add_(p, alpha=0.1)


def centralise(p: Any) -> None:
    p.grad.sub_(p.grad.mean())


def clip(p: Any) -> None:
    p.grad.clamp_(-1e-3, 1e-3)


def interpolate(p: Any) -> None:
    p.grad.lerp_(torch.ones_like(p.grad), 0.9)


def take_off(p: Any) -> None:
    p.grad = None


def exchange(p: Any) -> None:
    p.grad = torch.ones_like(p)


CHANGES = (decay, centralise, clip, interpolate, take_off, exchange)
STEPS = 3


def train(change: Any, closure: bool, watched: bool, evaluates: bool = True) -> tuple[Any, ...]:
    """Three steps; the probe, the true gradients, and a digest of everything."""
    torch.manual_seed(0)
    model, batch, truth, sink = mlp(6, 8, 3, activation=nn.Tanh), blobs(), [], MemorySink()
    optimizer = Writing(model.parameters(), change)
    probe, loss_fn = Gradients(model, evaluates), cross_entropy
    if watched:
        monitor = eq.attach(
            model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink],
            on_error="raise",
        )  # fmt: skip
        loss_fn = monitor.loss(cross_entropy)
    trail = []
    for _ in range(STEPS):
        twin = copy.deepcopy(model)
        named = dict(twin.named_parameters())
        rows = torch.autograd.grad(cross_entropy(twin, batch), list(named.values()))
        truth.append(dict(zip(named, rows, strict=True)))

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        trail.append(digest(dict(model.state_dict()), [p.grad for p in model.parameters()]))
    return probe, truth, trail, sink


def same(a: Any, b: Any) -> bool:
    return all(b[n] is not None and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("evaluates", [True, False], ids=["evaluating", "sums only"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_is_the_losses_own_from_the_first_step_on(
    change: Any, evaluates: bool, closure: bool
) -> None:
    probe, truth, trail, sink = train(change, closure, watched=True, evaluates=evaluates)
    assert all(same(a, b) for a, b in zip(truth, probe.given, strict=True))
    assert not any(same(a, b) for a, b in zip(truth, probe.left, strict=True))  # as read before
    checks = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
    assert checks == pytest.approx([1.0] * (len(truth) if evaluates else 1))
    assert trail == train(change, closure, watched=False)[2]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scale_that_the_optimizer_takes_out_itself_is_not_in_the_gradient(
    fused: bool, unscaled: bool
) -> None:
    torch.manual_seed(0)
    model, batch = mlp(6, 8, 3, activation=nn.Tanh), blobs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scaler, probe = torch.amp.GradScaler("cpu", init_scale=2.0**10), Gradients(model)
    monitor = eq.attach(model, optimizer, probes=[probe], schedule=1, budget=None, on_error="raise")
    loss = monitor.loss(cross_entropy)(model, batch)
    truth = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    scaler.scale(loss).backward()
    scaled = [p.grad.clone() for p in model.parameters()]
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    monitor.close()
    for given, true, big in zip(probe.given[0].values(), truth, scaled, strict=True):
        torch.testing.assert_close(given, true)
        assert not torch.allclose(big, true)


@pytest.mark.parametrize("closure", [(), (lambda: None,)], ids=["plain", "empty closure"])
def test_several_optimizers_are_each_asked_before_they_write(closure: Any) -> None:
    torch.manual_seed(0)
    model, batch = mlp(6, 8, 3, activation=nn.Tanh), blobs()
    optimizers = [Writing(layer.parameters(), interpolate) for layer in (model[0], model[2])]
    probe = Gradients(model)
    monitor = eq.attach(
        model, optimizers, probes=[probe], schedule=1, budget=None, on_error="raise"
    )
    loss = monitor.loss(cross_entropy)(model, batch)
    truth = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step(*closure)
    monitor.close()
    assert all(torch.equal(a, b) for a, b in zip(probe.given[0].values(), truth, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(probe.left[0].values(), truth, strict=True))


@pytest.mark.parametrize("writes_from", [0, 3, 9])
def test_gradients_are_copied_only_of_optimizers_that_write_into_them(
    writes_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that begins to is found out by their norms, at the cost of one step without."""
    torch.manual_seed(0)
    model, batch, steps, copies = mlp(6, 8, 3, activation=nn.Tanh), blobs(), [], []
    change = lambda p: decay(p) if len(steps) >= writes_from else None
    optimizer, probe = Writing(model.parameters(), change), Gradients(model, evaluates=False)
    copied = Step._copied

    def counted(step: Step, what: str, live: Any) -> Any:
        copies.append((len(steps), what.split()[0]))
        return copied(step, what, live)

    monkeypatch.setattr(Step, "_copied", counted)
    monitor = eq.attach(model, optimizer, probes=[probe], schedule=1, budget=None, on_error="raise")
    loss_fn = monitor.loss(cross_entropy)
    truth = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        truth.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
        steps.append(loss)
    monitor.close()
    told = [
        given is not None and same(a, given) for a, given in zip(truth, probe.given, strict=True)
    ]
    assert told == [k != writes_from or k == 0 for k in range(6)]
    made = [k for k, what in copies if what == "gradient"]
    assert made == [k for k in range(6) if k == 0 or k > writes_from or writes_from == 0]


@pytest.mark.parametrize("theirs", [False, True])
def test_torchs_optimizers_lend_gradients_to_probes_that_keep_nothing(
    theirs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, copies = mlp(6, 8, 3, activation=nn.Tanh), list[str]()
    optimizer, sink = torch.optim.AdamW(model.parameters(), lr=0.01), MemorySink()
    probe, copied = Gradients(model), Step._copied

    def counted(step: Step, what: str, live: Any) -> Any:
        copies.append(what.split()[0])
        return copied(step, what, live)

    monkeypatch.setattr(Step, "_copied", counted)
    probes = [Curvature(k=1), Conservation(), *([probe] if theirs else [])]
    options: dict[str, Any] = {"schedule": 1, "budget": None, "on_error": "raise"}
    with eq.attach(model, optimizer, probes=probes, sinks=[sink], **options) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for _ in range(3):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    assert copies.count("theta") == 3 and copies.count("gradient") == 3 * theirs
    checks = [r.value for r in sink.records if r.name == "monitor/closure_grad_ratio"]
    assert len(checks) == 3 and all(abs(x - 1) < 1e-6 for x in checks)
    assert all(r.status == "ok" for r in sink.records if r.name.startswith("conservation/drift"))


@pytest.mark.parametrize("who", ["another's backward", "a hook"])
def test_gradients_that_change_before_a_step_is_over_are_copied_from_the_first_on(who: str) -> None:
    torch.manual_seed(0)
    model, sink, batch = mlp(6, 8, 3, activation=nn.Tanh), MemorySink(), blobs()
    first, last = [*model[0].parameters()], [*model[-1].parameters()]
    if who == "a hook":
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
        negate = lambda *_: [p.grad.neg_() for p in model.parameters()]
        optimizers[0].register_step_post_hook(negate)
    else:
        optimizers = [torch.optim.SGD(own, lr=0.1) for own in (last, first)]
    probes = [Curvature(k=1), Conservation()]
    options: dict[str, Any] = {"schedule": 1, "budget": None, "on_error": "raise"}
    optimizer: Any = optimizers if len(optimizers) > 1 else optimizers[0]
    with eq.attach(model, optimizer, probes=probes, sinks=[sink], **options) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for _ in range(2):
            for one in optimizers:
                one.zero_grad()
            loss_fn(model, batch).backward()
            optimizers[0].step()
            if len(optimizers) > 1:
                with torch.no_grad():
                    for p in last:  # as the generator's backward does to the discriminator
                        p.grad.add_(1.0)
                optimizers[1].step()
    checks = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
    assert checks == pytest.approx([1.0, 1.0], abs=1e-6)


def test_closures_called_elsewhere_leave_the_step_without_a_gradient() -> None:
    torch.manual_seed(0)
    model, batch = mlp(6, 8, 3, activation=nn.Tanh), blobs()
    optimizer, probe = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3), Gradients(model)
    monitor = eq.attach(model, optimizer, probes=[probe], schedule=1, budget=None, on_error="raise")

    def evaluate() -> Tensor:  # not decorated: only the closure itself can be seen
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match="the model returns Tensor, not its loss"):
        optimizer.step(evaluate)
    monitor.close()
    assert probe.given == [None]


@pytest.mark.parametrize("evaluates", [True, False], ids=["evaluated", "read"])
@pytest.mark.filterwarnings("ignore:.*in no attached optimizer")
@pytest.mark.parametrize("clears", ["model", "optimizer"])
def test_gradients_that_nobody_clears_are_not_those_of_a_step(clears: str, evaluates: bool) -> None:
    """Only the head is in the optimizer, and the body is not frozen."""
    torch.manual_seed(0)
    model, sink, batch = mlp(6, 8, 3), MemorySink(), blobs()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    kept = Gradients(model, evaluates)
    probes: list[Probe] = [kept, Conservation(), *([Curvature(k=3)] if evaluates else [])]
    how: Any = {"schedule": 1, "budget": None, "sinks": [sink], "on_error": "raise"}
    truth, bends = [], []
    with eq.attach(model, optimizer, probes=probes, **how) as monitor:
        watched = monitor.loss(cross_entropy)
        for _ in range(4):
            (model if clears == "model" else optimizer).zero_grad()
            named = dict(model.named_parameters())
            loss = cross_entropy(model, batch)
            own = torch.autograd.grad(loss, [*named.values()], create_graph=True)
            size = torch.stack([g.square().sum() for g in own]).sum()
            product = torch.autograd.grad(size / 2, [*named.values()])
            bent = torch.stack([(g * h).sum() for g, h in zip(own, product, strict=True)]).sum()
            bends.append(float((bent / size).detach()))
            truth.append({n: g.detach() for n, g in zip(named, own, strict=True)})
            watched(model, batch).backward()
            optimizer.step()
    names = {*truth[0]} if clears == "model" else {"2.weight", "2.bias"}
    for given, true in zip(kept.given[1:], truth[1:], strict=True):
        assert given.keys() == names
        torch.testing.assert_close(given, {n: true[n] for n in names})
    first = {r.name: r.verdict for r in sink.records if r.step == 3 and "first_order" in r.name}
    assert ("conservation/first_order/rescale" in first) == (clears == "model")
    assert {*first.values()} == {"holds"}
    rayleigh = [r.value for r in sink.records if r.name == "curvature/gradient_rayleigh"]
    assert rayleigh == pytest.approx(bends if evaluates else [], rel=1e-3)
