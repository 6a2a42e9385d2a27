"""Every micro-batch of an accumulation window counts, with the weight its backward gave it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import blobs, mlp

PARTS = 4
Batch = tuple[Tensor, Tensor]


class Replay(Probe):
    """Value of the measured loss and distance of its gradient from `.grad`."""

    name = "replay"
    headline = "loss"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        leaves = {n: p.clone().requires_grad_() for n, p in snapshot.before.items()}
        loss = snapshot.objective.loss(leaves)
        rows = torch.autograd.grad(loss, list(leaves.values()))
        yield Measurement("loss", loss.item())
        if snapshot.gradient is not None:
            pairs = zip(rows, snapshot.gradient.values(), strict=True)
            yield Measurement("off", max(float((a - b).abs().max()) for a, b in pairs))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def thirds(batch: Batch, parts: int = PARTS) -> list[Batch]:
    return list(zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True))


Loop = Callable[[Any, nn.Module, Any, Batch], None]


def run(loop: Loop, steps: int = 1, probes: Any = None, **options: Any) -> MemorySink:
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3, activation=nn.Tanh), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"probes": probes or [Replay(), Curvature(k=1)], "schedule": 1, "budget": None}
    with eq.attach(
        model, optimizer, sinks=[sink], on_error="raise", **{**given, **options}
    ) as monitor:
        for _ in range(steps):
            loop(monitor, model, optimizer, blobs())
            optimizer.step()
            optimizer.zero_grad()
    return sink


def whole(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
    monitor.loss(cross_entropy)(model, batch).backward()


def divided_outside(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
    loss_fn = monitor.loss(cross_entropy)
    for part in thirds(batch):
        (loss_fn(model, part) / PARTS).backward()


def divided_inside(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
    loss_fn = monitor.loss(lambda model, batch: cross_entropy(model, batch) / PARTS)
    for part in thirds(batch):
        loss_fn(model, part).backward()


def summed_before_one_backward(monitor: Any, model: nn.Module, optimizer: Any, batch: Any) -> None:
    loss_fn = monitor.loss(cross_entropy)
    torch.stack([loss_fn(model, part) for part in thirds(batch)]).mean().backward()


def with_a_loss_nobody_trains_on(
    monitor: Any, model: nn.Module, optimizer: Any, batch: Batch
) -> None:
    loss_fn = monitor.loss(cross_entropy)
    for part in thirds(batch):
        loss_fn(model, (part[0] * 3, part[1]))  # for the log only
        (loss_fn(model, part) / PARTS).backward()


def with_a_gradient_thrown_away(
    monitor: Any, model: nn.Module, optimizer: Any, batch: Batch
) -> None:
    loss_fn = monitor.loss(cross_entropy)
    loss_fn(model, (batch[0] * 3, batch[1])).backward()
    optimizer.zero_grad(set_to_none=False)
    divided_outside(monitor, model, optimizer, batch)


def observed(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
    for part in thirds(batch):
        monitor.observe(part)
        (cross_entropy(model, part) / PARTS).backward()


def numbers(sink: MemorySink, name: str) -> list[float]:
    return [r.value for r in sink.records if r.name == name]


@pytest.mark.parametrize(
    "loop",
    [
        divided_outside, divided_inside, summed_before_one_backward, with_a_loss_nobody_trains_on,
        with_a_gradient_thrown_away, observed,
    ],
)  # fmt: skip
def test_micro_batches_measure_as_the_whole_batch_does(loop: Loop) -> None:
    options: dict[str, Any] = {"loss_fn": cross_entropy} if loop is observed else {}
    one, many = run(whole, steps=2), run(loop, steps=2, **options)
    for name in ("replay/loss", "curvature/sharpness", "curvature/gradient_rayleigh"):
        assert numbers(many, name) == pytest.approx(numbers(one, name), rel=2e-4), name
    if loop is not observed:
        expected = numbers(one, "training/loss")
        assert numbers(many, "training/loss") == pytest.approx(expected, rel=1e-5)
    assert numbers(many, "monitor/closure_grad_cos") == pytest.approx([1.0, 1.0], abs=1e-6)
    assert numbers(many, "monitor/closure_grad_ratio") == pytest.approx([1.0, 1.0], abs=1e-5)
    assert max(numbers(many, "replay/off")) < 1e-6


def test_the_last_micro_batch_alone_is_another_loss() -> None:
    """What would be measured if only the last loss of a window counted."""
    first = thirds(blobs())[-1]

    def last(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        monitor.loss(cross_entropy)(model, first).backward()

    part, all_of_it = numbers(run(last), "replay/loss"), numbers(run(whole), "replay/loss")
    assert part != pytest.approx(all_of_it, rel=5e-3)


def test_sums_are_measured_as_sums_and_token_weights_as_they_are() -> None:
    tokens = torch.tensor([1.0, 2.0, 5.0, 8.0])

    def weighted(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        loss_fn = monitor.loss(cross_entropy)
        for part, n in zip(thirds(batch), tokens, strict=True):
            (loss_fn(model, part) * n).backward()

    def reference(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        def loss(model: nn.Module, parts: Any) -> Tensor:
            terms = [n * cross_entropy(model, p) for p, n in zip(parts, tokens, strict=True)]
            return torch.stack(terms).sum()

        monitor.loss(loss)(model, thirds(batch)).backward()

    a, b = run(weighted), run(reference)
    for name in ("replay/loss", "curvature/sharpness", "training/loss"):
        assert numbers(a, name) == pytest.approx(numbers(b, name), rel=1e-4)


def test_observed_sums_are_told_from_means_by_the_gradient() -> None:
    def summed(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        for part in thirds(batch):
            monitor.observe(part)
            cross_entropy(model, part).backward()

    def given(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        for part in thirds(batch):
            monitor.observe(part, weight=0.5)
            (cross_entropy(model, part) / 2).backward()

    expected = numbers(run(whole), "replay/loss")[0]
    for loop, factor in ((summed, PARTS), (given, PARTS / 2)):
        sink = run(loop, loss_fn=cross_entropy)
        assert numbers(sink, "replay/loss") == [pytest.approx(factor * expected, rel=1e-5)]
        assert max(numbers(sink, "replay/off")) < 1e-5


def test_a_gradient_scaler_and_accumulation_measure_the_unscaled_mean() -> None:
    def loop(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        loss_fn = monitor.loss(cross_entropy)
        for part in thirds(batch):
            scaler.scale(loss_fn(model, part) / PARTS).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.step = lambda: None  # the step was taken by the scaler

    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    one, many = run(whole), run(loop)
    for name in ("replay/loss", "curvature/sharpness", "training/loss"):
        assert numbers(many, name) == pytest.approx(numbers(one, name), rel=2e-4)
    assert numbers(many, "monitor/closure_grad_ratio") == [pytest.approx(1.0, abs=1e-5)]


def test_a_closure_that_accumulates_is_one_window() -> None:
    def train(parts: int) -> MemorySink:
        torch.manual_seed(0)
        model, sink = mlp(6, 8, 3, activation=nn.Tanh), MemorySink()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        with eq.attach(
            model, optimizer, probes=[Replay()], schedule=1, budget=None, sinks=[sink]
        ) as monitor:
            loss_fn = monitor.loss(cross_entropy)

            def closure() -> Any:
                optimizer.zero_grad()
                losses = [loss_fn(model, part) / parts for part in thirds(blobs(), parts)]
                for loss in losses:
                    loss.backward()
                return sum(losses)

            optimizer.step(closure)
            optimizer.step(closure)
        return sink

    assert numbers(train(4), "replay/loss") == pytest.approx(
        numbers(train(1), "replay/loss"), rel=1e-4
    )


# -- batches of every kind, changed by the loop ----------------------------------------------


@dataclass(frozen=True)
class Pair:
    x: Tensor
    y: Tensor
    name: str = "pair"


def encoding(x: Tensor, y: Tensor) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BatchEncoding({"x": x, "y": y})


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
        (lambda x, y: (x, [y]), lambda b: (b[0], b[1][0])),
        (Pair, lambda b: (b.x, b.y)),
        (encoding, lambda b: (b["x"], b["y"])),
    ],
    ids=["dict", "tuple", "dataclass", "BatchEncoding"],
)
def test_batches_of_any_kind_are_kept_from_what_the_loop_does_to_them(
    make: Callable[..., Any], read: Callable[[Any], Batch]
) -> None:
    def loop(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        loss_fn = monitor.loss(lambda model, b: cross_entropy(model, read(b)))
        for x, y in thirds(batch):
            buffer = make(x.clone(), y)
            (loss_fn(model, buffer) / PARTS).backward()
            read(buffer)[0].zero_()  # the loop reuses its buffer
            if hasattr(buffer, "pop") and not isinstance(buffer, tuple):
                buffer.pop("y")

    one, many = run(whole), run(loop)
    assert numbers(many, "replay/loss") == pytest.approx(numbers(one, "replay/loss"), rel=1e-5)
    assert numbers(many, "monitor/closure_grad_cos") == [pytest.approx(1.0, abs=1e-6)]


def test_a_loss_that_changes_its_batch_is_replayed_on_what_it_was_given() -> None:
    def centred(model: nn.Module, batch: Batch) -> Tensor:
        batch[0].sub_(batch[0].mean(0)).mul_(2.0)
        return cross_entropy(model, batch)

    def loop(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        monitor.loss(centred)(model, (batch[0].clone(), batch[1])).backward()

    sink = run(loop)
    assert numbers(sink, "replay/loss") == pytest.approx(numbers(sink, "training/loss"), rel=1e-6)
    assert max(numbers(sink, "replay/off")) < 1e-6


def test_batches_are_held_on_due_windows_only() -> None:
    import weakref

    alive: list[int] = []

    def loop(monitor: Any, model: nn.Module, optimizer: Any, batch: Batch) -> None:
        kept = []
        loss_fn = monitor.loss(cross_entropy)
        for part in thirds(batch):
            (loss_fn(model, part) / PARTS).backward()
            kept += [weakref.ref(c.objective) for c in monitor._capture.pending.coming]
        alive.append(len(kept))

    run(loop, steps=4, schedule=2)
    assert alive[0] > 0
    assert alive[1] == 0, "nothing is caught in a window that is not due"
    assert alive[2] > 0


def test_a_window_runs_out_of_the_training_forward_into_no_graph() -> None:
    """Normalisation and dropout: each micro-batch with its own buffers and masks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)
    )
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    with eq.attach(
        model, optimizer, probes=[Replay()], schedule=1, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for _ in range(2):
            for part in thirds(blobs()):
                (loss_fn(model, part) / PARTS).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert max(numbers(sink, "replay/off")) < 1e-6
