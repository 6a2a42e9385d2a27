"""When the replayed gradient is not the one that trains, the warning names the cause."""

import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs, mlp


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squares(model: nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


def absolutes(model: nn.Module) -> Tensor:
    return sum((p.abs().sum() for p in model.parameters()), torch.zeros(()))


def run(train: Callable[[Any, nn.Module], None], **options: Any) -> tuple[MemorySink, list[str]]:
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3, activation=nn.Tanh), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        warnings.catch_warnings(record=True) as seen,
        eq.attach(
            model, optimizer, probes=[Conservation()], schedule=1, budget=None, sinks=[sink],
            **options,
        ) as monitor,
    ):  # fmt: skip
        warnings.simplefilter("always")
        train(monitor, model)
        optimizer.step()
    return sink, [str(w.message) for w in seen]


def number(sink: MemorySink, name: str) -> float:
    (record,) = [r for r in sink.records if r.name == name]
    return record.value


def l2(monitor: Any, model: nn.Module) -> None:
    (monitor.loss(cross_entropy)(model, blobs()) + 0.5 * squares(model)).backward()


def l2_by_a_second_backward(monitor: Any, model: nn.Module) -> None:
    monitor.loss(cross_entropy)(model, blobs()).backward()
    (0.5 * squares(model)).backward()


def l1(monitor: Any, model: nn.Module) -> None:
    (monitor.loss(cross_entropy)(model, blobs()) + 0.1 * absolutes(model)).backward()


def by_value(monitor: Any, model: nn.Module) -> None:
    monitor.loss(cross_entropy)(model, blobs()).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.005)


def zeroed(monitor: Any, model: nn.Module) -> None:
    monitor.loss(cross_entropy)(model, blobs()).backward()
    model[2].weight.grad = None


def reversed_by_a_hook(monitor: Any, model: nn.Module) -> None:
    model[0].weight.register_hook(lambda g: -g)
    monitor.loss(cross_entropy)(model, blobs()).backward()


def reversed_by_a_module(monitor: Any, model: nn.Module) -> None:
    model[2].register_full_backward_hook(lambda m, given, made: tuple(-g for g in given))
    monitor.loss(cross_entropy)(model, blobs()).backward()


def random_loss(monitor: Any, model: nn.Module) -> None:
    def noisy(model: nn.Module, batch: Any) -> Tensor:
        seed = int.from_bytes(os.urandom(4), "big")  # a source that nobody can put back
        noise = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(seed))
        return F.cross_entropy(model(batch[0] * noise), batch[1])

    monitor.loss(noisy)(model, blobs()).backward()


def another_loss(monitor: Any, model: nn.Module) -> None:
    monitor.loss(cross_entropy)(model, blobs())
    F.mse_loss(model(blobs()[0]), torch.ones(64, 3)).backward()


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        (l2, r"an L2 regulariser outside the loss function \(about 0.5 \|theta\|\^2\)"),
        (l2_by_a_second_backward, r"an L2 regulariser outside"),
        (l1, "an L1 regulariser outside the loss function"),
        (by_value, "the gradient was clipped by value at 0.005"),
        (zeroed, r"the loop set the gradient of 2.weight to zero"),
        (reversed_by_a_hook, "0.weight has a hook that may change its gradient"),
        (reversed_by_a_module, "2 has a hook that may change its gradient"),
        (random_loss, "the loss is random: evaluated twice"),
        (another_loss, "no backward reached a loss that was caught"),
    ],
)
def test_the_cause_of_another_gradient_is_named(
    train: Callable[[Any, nn.Module], None], cause: str
) -> None:
    sink, seen = run(train)
    assert number(sink, "monitor/closure_grad_cos") < 0.99
    (warning,) = [w for w in seen if "another gradient" in w]
    assert re.search(cause, warning), warning
    changed = train in (by_value, zeroed)
    assert ("measure the loss itself, whose gradient was changed" in warning) is changed
    assert ("measure a different loss" in warning) is not changed


def faithful(monitor: Any, model: nn.Module) -> None:
    monitor.loss(cross_entropy)(model, blobs()).backward()


def by_norm(monitor: Any, model: nn.Module) -> None:
    faithful(monitor, model)
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def backward_inside(monitor: Any, model: nn.Module) -> None:
    def whole(model: nn.Module, batch: Any) -> Tensor:
        loss = cross_entropy(model, batch)
        if first:
            first.clear()
            loss.backward()
        return loss

    first = [True]
    monitor.loss(whole)(model, blobs())


@pytest.mark.parametrize(
    ("train", "ratio"), [(faithful, 1.0), (by_norm, None), (backward_inside, 1.0)]
)
def test_a_faithful_loss_is_not_warned_of(train: Any, ratio: float | None) -> None:
    sink, seen = run(train)
    assert number(sink, "monitor/closure_grad_cos") == pytest.approx(1.0, abs=1e-6)
    found = number(sink, "monitor/closure_grad_ratio")
    assert found == pytest.approx(1.0, abs=1e-5) if ratio else found < 0.5
    assert not seen


def test_a_backward_inside_the_loss_that_adds_to_the_step_is_named() -> None:
    def train(monitor: Any, model: nn.Module) -> None:
        def attacked(model: nn.Module, batch: Any) -> Tensor:
            x = batch[0].clone().requires_grad_()
            (-2 * cross_entropy(model, (x, batch[1]))).backward()
            return cross_entropy(model, ((x + x.grad.sign()).detach(), batch[1]))

        monitor.loss(attacked)(model, blobs()).backward()

    _, seen = run(train)
    assert any("the loss runs a backward of its own" in w for w in seen)


def test_a_gradient_that_is_still_scaled_is_warned_of() -> None:
    def train(monitor: Any, model: nn.Module) -> None:
        batch = blobs()
        monitor.observe(batch)
        (1024 * cross_entropy(model, batch)).backward()

    sink, seen = run(train, loss_fn=cross_entropy)
    assert number(sink, "monitor/closure_grad_ratio") == pytest.approx(1024.0, rel=1e-4)
    assert any("1024 times the replayed one: still scaled" in w for w in seen)


def test_losses_that_no_backward_reached_are_told_apart() -> None:
    def train(monitor: Any, model: nn.Module) -> None:
        loss_fn = monitor.loss(cross_entropy)
        loss_fn(model, blobs())
        loss_fn(model, blobs()).backward()

    sink, _ = run(train)
    (check,) = [r for r in sink.records if r.name == "monitor/closure_grad_cos"]
    assert check.note == "2 losses before the step, 1 of them reached by a backward"


def test_another_model_in_the_decorated_function_is_not_taken_for_the_watched_one() -> None:
    def train(monitor: Any, model: nn.Module) -> None:
        loss_fn = monitor.loss(cross_entropy)
        loss_fn(model, blobs()).backward()
        torch.manual_seed(5)
        loss_fn(mlp(6, 8, 3), blobs()).backward()

    sink, seen = run(train)
    assert number(sink, "monitor/closure_grad_cos") == pytest.approx(1.0, abs=1e-6)
    assert not seen


def test_a_larger_model_around_the_watched_one_is_replayed_whole() -> None:
    torch.manual_seed(0)
    whole = mlp(6, 8, 3, activation=nn.Tanh)
    part, sink = whole[0], MemorySink()
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    with eq.attach(
        part, optimizer, probes=[Conservation()], schedule=1, budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        monitor.loss(cross_entropy)(whole, blobs()).backward()
        optimizer.step()
    assert number(sink, "monitor/closure_grad_cos") == pytest.approx(1.0, abs=1e-6)
