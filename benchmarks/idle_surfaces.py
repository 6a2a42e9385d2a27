"""What each surface adds to a step that is not due: all hooks and callbacks of one step.

    python benchmarks/idle_surfaces.py

Prints microseconds a step, the median of many, for steps of nothing but these calls.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.integrations import keras as on_keras
from eqtoolbox.integrations import lightning as on_lightning
from eqtoolbox.integrations import transformers as on_transformers

BATCH = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))


class Still(torch.optim.Optimizer):
    """An optimizer that does nothing but call its hooks."""

    def step(self, closure: Any = None) -> None:
        pass


def microseconds(step: Callable[[], Any], repeats: int = 20_000) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def main() -> None:
    model = nn.Linear(4, 2)
    never = {"schedule": 0, "budget": None, "probes": "light"}

    def optimizer() -> Still:
        return Still(model.parameters(), {"lr": 0.1})

    bare = optimizer()
    base = microseconds(bare.step)
    watched = optimizer()
    with eq.attach(model, watched, **never):
        print(f"plain loop     {microseconds(watched.step) - base:6.2f}")

    callback, followed = on_lightning.EqCallback(**never), optimizer()
    module = SimpleNamespace(automatic_optimization=True, get_submodule=lambda name: model)
    precision = SimpleNamespace(train_step_context=nullcontext)
    trainer = SimpleNamespace(
        is_global_zero=True, optimizers=[followed], loggers=[], global_step=0,
        precision_plugin=precision,
    )  # fmt: skip
    callback.on_train_start(trainer, module)

    def lightning() -> None:
        callback.on_train_batch_start(trainer, module, BATCH, 0)
        callback.on_before_backward(trainer, module, BATCH[0])
        callback.on_before_optimizer_step(trainer, module, followed)
        followed.step()

    print(f"Lightning      {microseconds(lightning) - base:6.2f}")
    callback.finish()

    trained = optimizer()
    hugging = on_transformers.EqCallback(**never)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    args = SimpleNamespace(label_smoothing_factor=0, bf16=False, fp16=False)
    hugging.on_train_begin(args, state, None, model=model, optimizer=trained)

    def transformers() -> None:
        hugging.on_step_begin(args, state, None)
        trained.step()
        state.global_step += 1

    print(f"Transformers   {microseconds(transformers) - base:6.2f}")
    hugging.finish()

    import keras

    keras_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    keras_model.compile(optimizer="sgd", loss="mse")
    keras_callback = on_keras.EqCallback(**never)
    keras_callback.set_model(keras_model)
    keras_callback.on_train_begin()
    nothing = lambda data: None
    step = microseconds(lambda: keras_callback._train_step(nothing, BATCH)) - microseconds(
        lambda: nothing(BATCH)
    )
    print(f"Keras          {step:6.2f}")
    keras_callback.on_train_end()


if __name__ == "__main__":
    main()
