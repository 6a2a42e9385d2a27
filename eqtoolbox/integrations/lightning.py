"""Lightning 2 (`lightning` or `pytorch_lightning`): `EqCallback` for `Trainer(callbacks=[...])`."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.integrations.extra import extra
from eqtoolbox.integrations.trackers import Trackers, known
from eqtoolbox.replay.scalar import scalar_loss
from eqtoolbox.sinks.scalars import Scalars
from eqtoolbox.sinks.tensorboard import TensorBoardSink

with extra("lightning", "eqtoolbox.integrations.lightning"):
    try:
        from lightning.pytorch import Callback
        from lightning.pytorch.loggers.logger import DummyLogger
        from lightning.pytorch.utilities.exceptions import MisconfigurationException
    except ModuleNotFoundError:
        from pytorch_lightning import Callback
        from pytorch_lightning.loggers.logger import DummyLogger
        from pytorch_lightning.utilities.exceptions import MisconfigurationException


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Following(Attachment):
    """An attachment to a part of what a Trainer trains."""

    optimizer: int | None = None
    module: str = ""
    validation: bool = False


class EqCallback(Following, Callback):
    """Watches a LightningModule as its optimizer trains it, and tells the Trainer's loggers.

    With automatic optimisation the loss is `training_step` itself, evaluated again where a probe
    needs it: what it logs then, to loggers and metrics, goes nowhere. With manual optimisation give
    `loss_fn(model, batch)` or `criterion`. Checkpoints hold what a resumed fit needs.

    Args:
        optimizer: which of the Trainer's optimizers to follow; all of them without.
        module: submodule to watch, such as "generator"; "" for all.
        validation: measure what needs no optimizer step, such as the equivariance error, on the
            first batch of each validation too, as `Monitor.validate` does: the loss is then
            `training_step`, or `loss_fn` or `criterion`, on a batch of the first loader.

    The others are those of `eqtoolbox.attach`.

    Example:
        >>> callback = EqCallback(run_dir="runs/a", probes="light", budget=None)
        >>> callback.state_key
        "EqCallback{'module': '', 'optimizer': None}"
    """

    @cached_property
    def state_key(self) -> str:
        """Lightning asks for it at every hook of every step."""
        key: str = self._generate_state_key(module=self.module, optimizer=self.optimizer)
        return key

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        optimizers = trainer.optimizers
        if self.optimizer is not None:
            if not 0 <= self.optimizer < len(optimizers):
                raise ValueError(
                    f"optimizer={self.optimizer}, but configure_optimizers() returned "
                    f"{len(optimizers)}; they count from 0"
                )
            optimizers = [optimizers[self.optimizer]]
        model = pl_module.get_submodule(self.module)
        how: dict[str, Any] = {"select": self.select, "histograms": self.histograms}
        trackers = [_Loggers(trainer, **how)] if trainer.loggers else []
        self.start(model, optimizers, trainer.global_step, *trackers, steps=_length(trainer))

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is None or not self.monitor.due or self.criterion is not None:
            return
        with trainer.precision_plugin.train_step_context():
            if self.loss_fn is not None:
                self.monitor.begin(self.loss_fn, batch)
            elif pl_module.automatic_optimization and not self.module:
                arguments = _arguments(pl_module.training_step, batch, batch_idx)
                loss = TrainingStep(pieces=trainer.accumulate_grad_batches)
                self.monitor.begin(loss, arguments)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self.monitor is not None and pl_module.automatic_optimization:
            self.monitor.end(_unscaled(loss, trainer.precision_plugin))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        manual = not pl_module.automatic_optimization
        if self.monitor is not None and manual and optimizer in self.monitor.optimizers:
            self.monitor.end(None)  # which of its losses led here, only the module knows

    def on_validation_batch_start(
        self,
        trainer: Any,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.validation or self.monitor is None or batch_idx or dataloader_idx:
            return
        with trainer.precision_plugin.val_step_context():
            if self.loss_fn is not None or self.criterion is not None:
                self.monitor.validate(batch)
            elif pl_module.automatic_optimization and not self.module:
                arguments = _arguments(pl_module.training_step, batch, batch_idx)
                self.monitor.validate(arguments, TrainingStep(pieces=1))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.finish(exception)


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """`training_step(batch, ...)` as a loss function, over the micro-batches of a step."""

    pieces: int

    def __call__(self, module: Any, arguments: tuple[Any, ...]) -> Tensor:
        with quiet(module):
            return scalar_loss(module.training_step(*arguments)) / self.pieces


@contextmanager
def quiet(module: Any) -> Iterator[None]:
    """Scope in which a LightningModule logs nothing; its state is kept by the replay around it."""
    own, trainer = module.__dict__, module.__dict__.get("_trainer")
    muted: dict[str, Any] = {"log": _nothing, "log_dict": _nothing, "print": _nothing}
    muted["_trainer"] = _Onlooker(trainer)
    if trainer.world_size > 1:
        muted["all_gather"] = _alone
    before = {name: own[name] for name in muted.keys() & own.keys()}
    own.update(muted)
    try:
        yield
    finally:
        for name in muted:
            own.pop(name)
        own.update(before)


class _Onlooker:
    """The Trainer as an evaluation by a probe sees it: all but its loggers."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.logger = DummyLogger() if trainer.loggers else None
        self.loggers = [DummyLogger() for _ in trainer.loggers]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class _Loggers(Trackers):
    """All loggers of a Trainer as one, numbers on its own axis; texts where they take them."""

    def __init__(self, trainer: Any, **how: Any) -> None:
        super().__init__(**how)
        self._trainer = trainer
        found = (
            known(getattr(logger, "experiment", None), self._select) for logger in trainer.loggers
        )
        self._sinks = [sink for sink in found if sink is not None]

    def log(self, numbers: dict[str, float], step: int) -> None:
        for sink in self.each():
            if isinstance(sink, TensorBoardSink):
                sink.lay_out()
        for logger in self._trainer.loggers:
            logger.log_metrics(numbers, step=self._trainer.global_step)

    def each(self) -> list[Scalars]:
        return self._sinks

    def draw(self, name: str, counts: NDArray[Any], edges: NDArray[Any], step: int) -> None:
        for sink in self.each():
            if isinstance(sink, TensorBoardSink):  # W&B takes them in a row with its own axis
                sink.draw(name, counts, edges, step)


def _unscaled(loss: Tensor, precision: Any) -> Tensor:
    """The loss itself: with a gradient scaler Lightning tells of the scaled one."""
    scaler = getattr(precision, "scaler", None)
    return loss if scaler is None else loss.detach() / scaler.scale(torch.ones_like(loss))


def _length(trainer: Any) -> float | None:
    """Optimizer steps of the whole fit; None where they follow no plan."""
    try:
        return float(trainer.estimated_stepping_batches)
    except MisconfigurationException:  # accumulation over numbers of batches that change
        return None


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _alone(*args: Any, **kwargs: Any) -> None:
    """In the place of what would exchange over the training's own group."""
    raise RuntimeError(
        "training_step calls all_gather, which no probe may: its exchange would meet one of the "
        "training's; give EqCallback(loss_fn=...) without it"
    )


def _arguments(step: Any, batch: Any, index: int) -> tuple[Any, ...]:
    """What Lightning calls `training_step` with: the index only where it is taken."""
    try:
        inspect.signature(step).bind(batch, index)
    except TypeError:
        return (batch,)
    return batch, index
