"""A monitor leaves nothing behind in a training on any device, in any of its precisions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.cuda.loops import Pictures, Training, Words, pictures, same, sgd, words


def channels_last() -> nn.Module:
    return Pictures().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def adamw(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, **options)


TRAININGS: dict[str, Training] = {
    "pictures": Training(model=Pictures, optimizer=sgd),
    "pictures, bfloat16": Training(model=Pictures, optimizer=sgd, autocast=torch.bfloat16),
    "pictures, scaled": Training(
        model=Pictures, optimizer=sgd, autocast=torch.bfloat16, scaled=True
    ),
    "channels last": Training(
        model=channels_last,
        optimizer=sgd,
        batches=partial(pictures, layout=torch.channels_last),
    ),
    "words with dropout": Training(model=Words, optimizer=adamw(), batches=words),
    "words, bfloat16": Training(
        model=Words, optimizer=adamw(), batches=words, autocast=torch.bfloat16
    ),
    "fused": Training(model=Words, optimizer=adamw(fused=True), batches=words),
}


def neutral(training: Training) -> bool:
    with_, records = training.run(attached=True)
    without, _ = training.run(attached=False)
    measured = [r for r in records if r.status == "ok" and not r.name.startswith("cost")]
    assert measured, "nothing was measured"
    assert not [r for r in records if r.status == "failed"]
    return same(with_, without)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_the_same_to_the_last_bit(name: str, device: str) -> None:
    assert neutral(replace(TRAININGS[name], device=device))


def test_a_probe_that_draws_from_the_trainings_stream_is_seen(device: str) -> None:
    """Negative control: the comparison sees a stream that has moved."""
    training = replace(TRAININGS["words with dropout"], device=device)
    without, _ = training.run(attached=False)
    calls: list[int] = []

    def drawing(model: nn.Module) -> Any:
        def call(x: torch.Tensor) -> Any:
            calls.append(torch.rand((), device=device).numel())
            return model(x)

        return call

    other, _ = replace(training, called=drawing).run(attached=False)
    assert calls
    assert not same(without, other)


@pytest.mark.parametrize("name", ["pictures", "words with dropout"])
def test_float16_with_a_gradient_scaler(name: str, gpu: str) -> None:
    training = replace(TRAININGS[name], device=gpu, autocast=torch.float16, scaled=True)
    assert neutral(training)


def test_a_capturable_optimizer(gpu: str) -> None:
    training = replace(TRAININGS["fused"], device=gpu, optimizer=adamw(capturable=True))
    assert neutral(training)


def test_steps_on_a_stream_of_their_own(gpu: str) -> None:
    stream = torch.cuda.Stream()
    training = replace(TRAININGS["pictures"], device=gpu, around=lambda: torch.cuda.stream(stream))
    assert neutral(training)
    torch.cuda.synchronize()


@pytest.mark.slow
def test_a_compiled_model(gpu: str) -> None:
    training = replace(
        TRAININGS["words, bfloat16"],
        device=gpu,
        model=lambda: Words(dropout=0.0),
        called=lambda model: torch.compile(model),
    )
    assert neutral(training)
