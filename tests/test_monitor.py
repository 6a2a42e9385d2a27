"""Attaching, catching the loss, budget, resuming, and what happens when something is wrong."""

import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import blobs, mlp


class Loss(Probe):
    """Measures the replayed loss: a probe of the capture itself."""

    name = "replay"
    headline = "loss"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("loss", float(snapshot.objective.loss(snapshot.before).detach()))


def setup(lr: float = 0.1) -> tuple[nn.Sequential, torch.optim.Optimizer, MemorySink]:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    return model, torch.optim.SGD(model.parameters(), lr=lr), MemorySink()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def values(sink: MemorySink, name: str) -> list[float]:
    return [r.value for r in sink.records if r.name == name]


def only(sink: MemorySink, name: str) -> Record:
    (record,) = [r for r in sink.records if r.name == name]
    return record


def watch(model: nn.Module, optimizer: Any, sink: MemorySink, **options: Any) -> eq.Monitor:
    defaults: dict[str, Any] = {"probes": [Loss()], "schedule": 1, "budget": None}
    return eq.attach(model, optimizer, sinks=[sink], **{**defaults, **options})


# -- ways to tell the loss --------------------------------------------------------------------


def test_a_decorated_loss_is_replayed_exactly() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink, on_error="raise") as monitor:

        @monitor.loss
        def loss_fn(model: nn.Module, batch: Any, scale: float = 1.0) -> tuple[Tensor, str]:
            ridge = 1e-2 * sum(p.square().sum() for p in model.parameters())
            return scale * cross_entropy(model, batch) + ridge, "aux"

        seen = []
        for _ in range(3):
            loss, _ = loss_fn(model, blobs(), scale=2.0)
            seen.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert values(sink, "replay/loss") == pytest.approx(seen, rel=1e-6)
    assert values(sink, "training/loss") == seen
    assert values(sink, "monitor/closure_grad_cos") == pytest.approx([1.0] * 3, abs=1e-6)


def test_a_criterion_is_caught_without_touching_the_loop() -> None:
    model, optimizer, sink = setup()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    with watch(model, optimizer, sink, criterion=criterion, on_error="raise"):
        x, y = blobs()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    assert only(sink, "replay/loss").value == pytest.approx(loss.item(), rel=1e-6)
    assert only(sink, "training/loss").value == loss.item()


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(self.drop(inputs))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_model_that_returns_its_loss_needs_nothing_and_its_dropout_mask_is_replayed() -> None:
    model, sink = OwnLoss(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, sink, on_error="raise"):
        x, y = blobs()
        loss = model(inputs=x, labels=y)["loss"]
        loss.backward()
        optimizer.step()
    assert only(sink, "replay/loss").value == pytest.approx(loss.item(), rel=1e-6)
    assert only(sink, "monitor/closure_grad_cos").value == pytest.approx(1.0, abs=1e-6)


def test_a_loss_function_with_observed_batches() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink, loss_fn=cross_entropy, on_error="raise") as monitor:
        batch = blobs()
        monitor.observe(batch)
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
    assert only(sink, "replay/loss").value == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("source", ["loss_fn", "criterion", "decorator"])
def test_a_fixed_probe_batch_is_what_gets_measured(source: str) -> None:
    model, optimizer, sink = setup(lr=0.0)
    fixed, criterion = blobs(32), nn.CrossEntropyLoss()
    given: dict[str, Any] = {"probe_batch": fixed, "on_error": "raise"}
    if source != "decorator":
        given[source] = cross_entropy if source == "loss_fn" else criterion
    with watch(model, optimizer, sink, **given) as monitor:
        loss_fn = monitor.loss(cross_entropy) if source == "decorator" else cross_entropy
        for step in range(2):
            x, y = blobs()
            batch = (x + step, y)
            loss = criterion(model(x), y) if source == "criterion" else loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    expected = cross_entropy(model, fixed).item()
    assert values(sink, "replay/loss") == pytest.approx([expected, expected], rel=1e-6)


def test_a_regulariser_outside_the_loss_is_found_out() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        loss = loss_fn(model, blobs()) + 5 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        with pytest.warns(RuntimeWarning, match=r"replayed loss has another gradient"):
            optimizer.step()
    assert only(sink, "monitor/closure_grad_cos").value < 0.99
    assert sink.events[0][1] == "warning"


def test_probes_at_a_step_see_the_parameters_before_it() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        before = loss_fn(model, blobs()).item()
        loss_fn(model, blobs()).backward()
        optimizer.step()
        after = cross_entropy(model, blobs()).item()
    assert only(sink, "replay/loss").value == pytest.approx(before, rel=1e-6)
    assert abs(after - before) > 1e-4


def test_a_closure_optimizer_is_one_step_per_call() -> None:
    model, _, sink = setup()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    with watch(model, optimizer, sink, on_error="raise") as monitor:
        loss_fn = monitor.loss(cross_entropy)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, blobs())
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
    assert [r.step for r in sink.records if r.name == "replay/loss"] == [0, 1]


# -- no loss, or nothing to measure ------------------------------------------------------------


def step_without_loss(monitor_options: dict[str, Any]) -> MemorySink:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink, **monitor_options):
        cross_entropy(model, blobs()).backward()
        optimizer.step()
    return sink


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "the model returns Tensor, not its loss: decorate"),
        ({"loss_fn": cross_entropy}, r"call monitor.observe\(batch\)"),
        ({"criterion": nn.CrossEntropyLoss()}, "CrossEntropyLoss .* is not called in the training"),
    ],
)
def test_without_a_loss_the_record_says_what_to_do(options: dict[str, Any], why: str) -> None:
    record = only(step_without_loss(options), "replay/loss")
    assert record.status == "not_applicable"
    assert math.isnan(record.value)
    assert __import__("re").search(why, record.note)


def test_a_criterion_on_something_else_than_the_output_is_named() -> None:
    model, optimizer, sink = setup()
    criterion = nn.CrossEntropyLoss()
    with watch(model, optimizer, sink, criterion=criterion):
        x, y = blobs()
        criterion(torch.cat([model(x), model(x)]), torch.cat([y, y])).backward()
        optimizer.step()
    assert "not called on the model's own output" in only(sink, "replay/loss").note


def test_an_empty_training_batch_is_recorded_and_training_goes_on() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink) as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_fn = monitor.loss(lambda m, b: m(b).sum())
        loss_fn(model, torch.zeros(0, 6)).backward()
        optimizer.step()
    record = only(sink, "replay/loss")
    assert record.status == "failed"
    assert "expected a batch with samples in it" in record.note


def test_a_nan_loss_is_non_finite_and_never_a_number() -> None:
    model, optimizer, sink = setup()
    probes = [Curvature(k=1), Conservation()]
    with watch(model, optimizer, sink, probes=probes) as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_fn = monitor.loss(lambda m, b: cross_entropy(m, b) * float("nan"))
        loss_fn(model, blobs()).backward()
        optimizer.step()
    assert only(sink, "curvature/sharpness").status == "non_finite"
    assert only(sink, "training/loss").status == "non_finite"
    assert not any(r.status == "ok" for r in sink.records if r.probe in ("curvature", "replay"))


def test_complex_parameters_are_not_applicable() -> None:
    model = nn.Linear(3, 2, dtype=torch.complex64)
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    probes = [Curvature(k=1), Conservation()]
    with watch(model, optimizer, sink, probes=probes) as monitor:
        loss_fn = monitor.loss(lambda m, b: m(b).abs().square().mean())
        loss_fn(model, torch.randn(4, 3, dtype=torch.complex64)).backward()
        optimizer.step()
    for name in ("curvature/sharpness", "conservation/drift/"):
        record = next(r for r in sink.records if r.name.startswith(name.rstrip("/")))
        assert record.status == "not_applicable"
        assert "complex" in record.note


def test_integer_inputs_are_not_applicable_to_image_symmetries() -> None:
    from eqtoolbox.probes.equivariance import EquivarianceError

    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    with watch(model, optimizer, sink, probes=[EquivarianceError()]) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        loss_fn(model, (torch.randint(0, 5, (8, 3)), torch.randint(0, 3, (8,)))).backward()
        optimizer.step()
    record = only(sink, "equivariance/relative_error")
    assert record.status == "not_applicable"
    assert "int64" in record.note


# -- refused at construction --------------------------------------------------------------------


def test_what_cannot_work_is_refused_at_attach(tmp_path: Path) -> None:
    model, optimizer, _ = setup()

    class Wrapper:
        pass

    with pytest.raises(TypeError, match=r"expected a torch.optim.Optimizer with step hooks.*Wrapp"):
        eq.attach(model, Wrapper())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected model as an nn.Module"):
        eq.attach(lambda x: x, optimizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected a model with trainable parameters, got ReLU"):
        eq.attach(nn.ReLU(), optimizer)
    with pytest.raises(ValueError, match=r"holds none of the model's parameters"):
        eq.attach(mlp(2, 2), optimizer)
    with pytest.raises(TypeError, match=r"criterion must be an nn.Module"):
        eq.attach(model, optimizer, criterion=F.cross_entropy)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"budget is a share of training time"):
        eq.attach(model, optimizer, budget=-1)
    with pytest.raises(ValueError, match=r"on_error must be one of"):
        eq.attach(model, optimizer, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got only empty tensors"):
        eq.attach(model, optimizer, probe_batch=(torch.zeros(0, 6), torch.zeros(0)))
    with pytest.raises(ValueError, match=r"on the model's device \['cpu'\], got a tensor on meta"):
        eq.attach(model, optimizer, probe_batch=torch.zeros(2, 6, device="meta"))
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match=r"lazy parameter.*run one forward pass"):
        eq.attach(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write run_dir .*give a writable directory"):
        eq.attach(model, optimizer, run_dir=tmp_path / "file" / "run")
    assert not optimizer._optimizer_step_post_hooks, "a refused attach leaves no hook"


def test_a_second_monitor_is_refused_with_the_first_ones_place() -> None:
    model, optimizer, _ = setup()
    with (
        eq.attach(model, optimizer),
        pytest.raises(
            ValueError, match=r"has a monitor already, attached at .*test_monitor.py:\d+"
        ),
    ):
        eq.attach(model, optimizer)
    eq.attach(model, optimizer).close()


def test_a_wrapped_optimizer_is_unwrapped() -> None:
    model, optimizer, _ = setup()

    class Accelerated:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    monitor = eq.attach(model, Accelerated(optimizer))  # type: ignore[arg-type]
    assert monitor.optimizer is optimizer
    monitor.close()


# -- budget, errors, resuming ----------------------------------------------------------------------


class Slow(Probe):
    name = "slow"
    headline = "time"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        time.sleep(0.02)
        yield Measurement("time", 1.0)


def test_the_budget_holds_and_skips_are_recorded() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink, probes=[Slow()], budget=0.2, allowance=0.0) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for _ in range(100):
            loss_fn(model, blobs()).backward()
            time.sleep(0.012)
            optimizer.step()
    rows = [r for r in sink.records if r.name == "slow/time"]
    run = sum(r.status == "ok" for r in rows)
    assert 2 <= run <= 30, "1.2 s of training at 20 % pay for about 12 runs of 20 ms"
    skipped = [r for r in rows if r.status == "skipped_budget"]
    assert run + values(sink, "cost/skipped/slow")[-1] == 100, "each skip is counted"
    assert len(skipped) <= run * 8, "but of skips in a row only the 1st, 2nd, 4th, ... is told"
    assert "20.0% of" in skipped[0].note
    assert all(math.isnan(r.value) for r in skipped)


def test_probe_now_measures_whatever_is_due() -> None:
    model, optimizer, sink = setup()
    with watch(
        model, optimizer, sink, schedule=1000, probe_batch=blobs(), loss_fn=cross_entropy
    ) as m:
        records = m.probe_now()
    assert [r.name for r in records if r.probe == "replay"] == ["replay/loss"]
    assert records[0].value == pytest.approx(cross_entropy(model, blobs()).item(), rel=1e-6)


def test_probe_now_without_a_batch_says_what_to_do() -> None:
    model, optimizer, sink = setup()
    with (
        watch(model, optimizer, sink, loss_fn=cross_entropy) as monitor,
        pytest.raises(ValueError, match=r"probe_now\(\) needs a batch"),
    ):
        monitor.probe_now()


def test_a_raising_sink_is_disabled_and_the_others_go_on() -> None:
    class Broken(eq.Sink):
        def write(self, record: Record) -> None:
            raise OSError("disk full")

    model, optimizer, sink = setup()
    with eq.attach(
        model, optimizer, probes=[Loss()], schedule=1, budget=None, sinks=[Broken(), sink]
    ) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        loss_fn(model, blobs()).backward()
        with pytest.warns(RuntimeWarning, match="Broken is disabled, it raised OSError: disk full"):
            optimizer.step()
        loss_fn(model, blobs()).backward()
        optimizer.step()
    assert len(values(sink, "replay/loss")) == 2


def test_an_exception_in_the_loop_closes_the_run_and_keeps_its_rows(tmp_path: Path) -> None:
    model, optimizer, sink = setup()

    def loop() -> None:
        with watch(model, optimizer, sink, run_dir=tmp_path / "run") as monitor:
            loss_fn = monitor.loss(cross_entropy)
            loss_fn(model, blobs()).backward()
            optimizer.step()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop()
    run = eq.Run(tmp_path / "run")
    assert len(run.series("replay/loss")[0]) == 1
    assert run.events[-1]["message"] == "KeyError: 'mine'"
    assert not optimizer._optimizer_step_post_hooks


def resumable(steps: range, state: dict[str, Any] | None, **options: Any) -> tuple[Any, Any]:
    model, optimizer, sink = setup()
    if state:
        model.load_state_dict(state["model"])
    monitor = watch(model, optimizer, sink, probes=[Conservation(), Curvature(k=1)], **options)
    if state:
        monitor.load_state_dict(state["monitor"])
    loss_fn = monitor.loss(cross_entropy)
    for _ in steps:
        optimizer.zero_grad()
        loss_fn(model, blobs()).backward()
        optimizer.step()
    saved = {"model": model.state_dict(), "monitor": monitor.state_dict()}
    monitor.close()
    return sink.records, saved


def test_a_resumed_run_gives_the_records_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = resumable(range(8), None)
    first, state = resumable(range(5), None, run_dir=tmp_path / "run")
    torch.save(state, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt")
    second, _ = resumable(range(3), state, run_dir=tmp_path / "run", resume=True)
    assert {r.segment for r in second} == {1}

    def numbers(records: list[Record]) -> list[tuple[int, str, float]]:
        told = ("conservation", "curvature", "training", "vital")
        cut = "vital/losses"  # told once more as the first part is closed
        rows = [r for r in records if r.probe in told and r.name != cut]
        return [(r.step, r.name, r.value) for r in rows]

    assert numbers(first + second) == numbers(whole)
    noise = {r.step: r.facts["measurements"] for r in whole if r.name == "vital/noise_scale"}
    again = {r.step: r.facts["measurements"] for r in second if r.name == "vital/noise_scale"}
    assert again and again.items() <= noise.items(), "a mean over all measurements so far"
    assert list(eq.Run(tmp_path / "run").series("curvature/sharpness")[0]) == list(range(8))


def test_a_foreign_state_is_refused() -> None:
    model, optimizer, sink = setup()
    with (
        watch(model, optimizer, sink) as monitor,
        pytest.raises(KeyError, match="state of a Monitor"),
    ):
        monitor.load_state_dict({"step": 3})


def test_a_loss_inside_the_users_autocast_is_replayed_in_it_and_measured_outside() -> None:
    model, optimizer, sink = setup()
    with watch(model, optimizer, sink, on_error="raise") as monitor:
        loss_fn = monitor.loss(cross_entropy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_fn(model, blobs())
        loss.backward()
        optimizer.step()
    assert only(sink, "monitor/closure_grad_cos").value == pytest.approx(1.0, abs=1e-6)
    full = only(sink, "replay/loss").value
    assert full != loss.item()
    assert full == pytest.approx(loss.item(), rel=2e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_changes_nothing_that_is_measured(fused: bool) -> None:
    """Fused optimizers unscale inside the step; what is compared is what the step used."""
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3), MemorySink()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, optimizer, sink, on_error="raise") as monitor:
        loss_fn = monitor.loss(cross_entropy)
        loss = loss_fn(model, blobs())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert only(sink, "monitor/closure_grad_cos").value == pytest.approx(1.0, abs=1e-6)
    assert only(sink, "replay/loss").value == pytest.approx(loss.item(), rel=1e-6)
