"""Keras 3 on the torch backend: `EqCallback` for `model.fit(callbacks=[...])`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.integrations.extra import extra
from eqtoolbox.watch.monitor import Monitor

with extra("keras", "eqtoolbox.integrations.keras"):
    import keras

    from eqtoolbox.integrations.keras_model import KerasModel, KerasOptimizer

STATE = "keras.pt"  # inside the run directory


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Saving(Attachment):
    """An attachment that is saved as often as `save_freq` says."""

    save_freq: int | Literal["epoch"] = "epoch"


class EqCallback(Saving, keras.callbacks.Callback):
    """Watches a Keras model as `fit` trains it.

    The loss is `compute_loss` on the batch that `train_step` was given; its parameters are called
    by their paths, such as "dense/kernel". The monitor's state is kept in `run_dir` as often as
    `BackupAndRestore` saves the model's, and a fit whose optimizer has iterations behind it goes
    on from there.

    Args:
        save_freq: of the state, as of `keras.callbacks.BackupAndRestore`.

    The others are those of `eqtoolbox.attach`; `loss_fn(model, batch)` and `criterion` have no use
    here, as Keras knows the loss.

    Raises:
        RuntimeError: Keras runs on another backend than torch.
        ValueError: `loss_fn` or `criterion` was given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        keras.callbacks.Callback.__init__(self)
        self._taken: list[str] = []  # patched methods
        if keras.backend.backend() != "torch":
            raise RuntimeError(
                f"expected Keras on the torch backend, got {keras.backend.backend()}; set the "
                "environment variable KERAS_BACKEND=torch before keras is imported"
            )
        if self.loss_fn is not None or self.criterion is not None:
            raise ValueError(
                "loss_fn and criterion are not used with Keras: give the loss to model.compile(), "
                "or override compute_loss()"
            )

    def on_train_begin(self, logs: Any = None) -> None:
        before = self.model.__dict__.get("train_step")
        if isinstance(before, _Around):  # a fit that was interrupted
            before.owner.on_train_end()
        self._take("train_step", self._train_step)
        self._take("compute_loss", self._compute_loss)

    def on_train_end(self, logs: Any = None) -> None:
        for name in self._taken:
            around = self.model.__dict__.pop(name)
            if around.own is not None:
                self.model.__dict__[name] = around.own
        self._taken.clear()
        self.finish()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.save_freq == "epoch":
            self._save()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = self.monitor.step if self.monitor is not None else 0
        if self.save_freq != "epoch" and steps % self.save_freq == 0:
            self._save()

    def _train_step(self, original: Callable[..., Any], data: Any) -> Any:
        """`train_step` between the hooks that a torch optimizer would have called."""
        monitor = self.monitor or self._attach()
        if monitor.due:
            self._optimizer.read()
            monitor.begin(compute_loss, keras.utils.unpack_x_y_sample_weight(data))
        self._optimizer.starts()
        try:
            return original(data)
        finally:
            if monitor.due:
                self._optimizer.read_state()
            self._optimizer.ends()

    def _compute_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if self.monitor is not None and isinstance(loss, Tensor):
            self.monitor.end(loss)
        return loss

    def _attach(self) -> Monitor:
        """At the first batch: other callbacks have restored the model by then."""
        step = int(self.model.optimizer.iterations.value)
        model = KerasModel(self.model)
        self._optimizer = KerasOptimizer.of(self.model.optimizer, model)
        if step > 0 and self._fit.state is None:
            self._load(step)
        plan = self.params or {}
        whole = step == 0 and plan.get("epochs") and plan.get("steps")
        ends = plan["epochs"] * plan["steps"] if whole else None
        return self.start(model, self._optimizer, step, steps=ends)

    def _take(self, name: str, call: Callable[..., Any]) -> None:
        """Call `call(original, ...)` in the place of a method of this model until the end."""
        own, original = self.model.__dict__.get(name), getattr(self.model, name)
        self.model.__dict__[name] = _Around(owner=self, call=call, original=original, own=own)
        self._taken.append(name)

    def _save(self) -> None:
        if self.run_dir is not None and self.monitor is not None:
            draft = Path(self.run_dir) / (STATE + ".new")
            torch.save(self.state_dict(), draft)
            draft.replace(Path(self.run_dir) / STATE)

    def _load(self, step: int) -> None:
        file = Path(self.run_dir) / STATE if self.run_dir is not None else None
        if file is not None and file.is_file():
            state = torch.load(file, map_location="cpu")
            if state["step"] == step:
                self.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class _Around:
    """A method of a Keras model with a callback's around it."""

    owner: EqCallback
    call: Callable[..., Any]
    original: Callable[..., Any]
    own: Any  # the attribute that was in its place, where there was one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.original, *args, **kwargs)


def compute_loss(model: Any, batch: tuple[Any, Any, Any]) -> Tensor:
    """The loss of one batch as Keras trains it, regularisers included."""
    loss: Tensor = model.loss(*batch)
    return loss
