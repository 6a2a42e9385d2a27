"""The documentation's example of each surface, for as many steps as a stream gives."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import eqtoolbox as eq

Batch = Any
Watch = dict[str, Any] | None  # arguments of `attach`; None: nobody watches


class Stream(IterableDataset[Batch]):
    """The same few batches over and over, with the processor time at chosen steps.

    Args:
        batches: given in turn.
        steps: batches in all.
        marks: steps, whose times are kept; the end is kept as well.
    """

    def __init__(self, batches: list[Batch], steps: int, marks: tuple[int, ...]) -> None:
        self.batches, self.steps, self.marks = batches, steps, marks
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.steps):
            if step in self.marks:
                self.times.append(time.process_time())
            yield self.batches[step % len(self.batches)]

    def __len__(self) -> int:
        return self.steps


def classes(samples: int = 32, features: int = 64, kinds: int = 10, count: int = 20) -> list[Batch]:
    """Batches of inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(samples, features, generator=generator),
            torch.randint(0, kinds, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def tokens() -> list[Batch]:
    """Batches of token rows that are their own labels."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 50, (8, 16), generator=generator) for _ in range(20)]
    return [{"input_ids": row, "labels": row} for row in rows]


def network(features: int = 64, hidden: int = 32, kinds: int = 10) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, kinds))


class OwnLoss(nn.Module):
    """A network that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.net(images), labels)}


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def loop(stream: Stream, model: nn.Module, loss_of: Callable[[Batch], Tensor], opt: Any) -> None:
    for batch in stream:
        loss_of(batch).backward()
        opt.step()
        opt.zero_grad()


def decorator(stream: Stream, watch: Watch) -> None:
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    loss_fn, monitor = cross_entropy, None
    if watch is not None:
        monitor = eq.attach(model, opt, **watch)
        loss_fn = monitor.loss(loss_fn)
    loop(stream, model, lambda batch: loss_fn(model, batch), opt)
    if monitor is not None:
        monitor.close()


def criterion(stream: Stream, watch: Watch) -> None:
    model, measure = network(), nn.CrossEntropyLoss()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    monitor = eq.attach(model, opt, criterion=measure, **watch) if watch is not None else None
    loop(stream, model, lambda batch: measure(model(batch[0]), batch[1]), opt)
    if monitor is not None:
        monitor.close()


def observed(stream: Stream, watch: Watch) -> None:
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    if watch is None:
        loop(stream, model, lambda batch: cross_entropy(model, batch), opt)
        return
    with eq.attach(model, opt, loss_fn=cross_entropy, **watch) as monitor:

        def loss_of(batch: Batch) -> Tensor:
            monitor.observe(batch)
            return cross_entropy(model, batch)

        loop(stream, model, loss_of, opt)


def own_loss(stream: Stream, watch: Watch) -> None:
    model = OwnLoss()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    monitor = eq.attach(model, opt, **watch) if watch is not None else None
    loop(stream, model, lambda batch: model(*batch)["loss"], opt)
    if monitor is not None:
        monitor.close()


def lightning(stream: Stream, watch: Watch) -> None:
    import lightning.pytorch as pl

    from eqtoolbox.integrations.lightning import EqCallback

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(8, 16, 3)

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet,
        callbacks=[] if watch is None else [EqCallback(**watch)],
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(stream, batch_size=None))


def transformers(stream: Stream, watch: Watch) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from eqtoolbox.integrations.transformers import EqCallback

    class Streaming(Trainer):  # batches as they come, so that their step can be timed
        def get_train_dataloader(self) -> DataLoader[Batch]:
            return DataLoader(stream, batch_size=None)

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=stream.steps, report_to=[], use_cpu=True, save_strategy="no",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Streaming(
            model=GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=stream,
            callbacks=[] if watch is None else [EqCallback(**watch)],
        )
        trainer.train()


def accelerate(stream: Stream, watch: Watch) -> None:
    from accelerate import Accelerator

    from eqtoolbox.integrations.accelerate import attach

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, measure = network(8, 16, 3), nn.CrossEntropyLoss()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, opt = accelerator.prepare(model, opt)
    monitor = None
    if watch is not None:
        monitor = attach(accelerator, eq.attach(model, opt, criterion=measure, **watch))
    for batch in stream:
        with accelerator.accumulate(model):
            accelerator.backward(measure(model(batch[0]), batch[1]))
            opt.step()
            opt.zero_grad()
    if monitor is not None:
        monitor.close()


def ignite(stream: Stream, watch: Watch) -> None:
    from ignite.engine import create_supervised_trainer

    from eqtoolbox.integrations.ignite import attach

    model, measure = network(8, 16, 3), nn.CrossEntropyLoss()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, opt, measure)
    if watch is not None:
        attach(trainer, eq.attach(model, opt, criterion=measure, **watch))
    trainer.run(stream, max_epochs=1)


def keras(stream: Stream, watch: Watch) -> None:
    import keras as k

    from eqtoolbox.integrations.keras import EqCallback

    model = k.Sequential([k.layers.Dense(16, activation="relu"), k.layers.Dense(3)])
    measure = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=k.optimizers.SGD(0.1), loss=measure)
    callbacks = [] if watch is None else [EqCallback(**watch)]
    model.fit(iter(stream), steps_per_epoch=stream.steps, verbose=0, callbacks=callbacks)


def run_directory(folder: str | Path, number: int) -> dict[str, Any]:
    """What a user gives to watch a run: the default probes and budget, and where to write."""
    return {"run_dir": Path(folder) / str(number)}


small = lambda: classes(features=8, kinds=3)
SURFACES: dict[str, tuple[Callable[[Stream, Watch], None], Callable[[], list[Batch]], int]] = {
    "decorator": (decorator, classes, 5000),
    "criterion": (criterion, classes, 5000),
    "loss_fn, observe": (observed, classes, 5000),
    "own loss": (own_loss, classes, 5000),
    "Lightning": (lightning, small, 1500),
    "Transformers": (transformers, tokens, 600),
    "Accelerate": (accelerate, small, 4000),
    "Ignite": (ignite, small, 4000),
    "Keras": (keras, small, 1500),
}  # training, its batches, and steps for some seconds
