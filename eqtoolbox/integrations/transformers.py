"""Hugging Face Transformers: `EqCallback` for `Trainer(callbacks=[...])`."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from eqtoolbox.attach.attach import switched_off
from eqtoolbox.expect.checked import checked
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.integrations.extra import extra
from eqtoolbox.replay.streams import random_streams
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.replay.tree import map_tensors
from eqtoolbox.report.model_card import model_card_section, with_section
from eqtoolbox.report.run import Run
from eqtoolbox.watch.probe import topics

with extra("transformers", "eqtoolbox.integrations.transformers"):
    from transformers import TrainerCallback

STATE = "eqtoolbox.pt"  # inside a checkpoint
SHORT = 100_000  # entries of a list that is copied where a probe evaluates the loss
F = TypeVar("F", bound=Callable[..., Any])


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Validating(Attachment):
    """An attachment that measures at each evaluation, too, if it is asked to."""

    validation: bool = False


class EqCallback(Validating, TrainerCallback):
    """Watches the model of a `Trainer`; its numbers also go to `trainer.state.log_history`.

    The loss that the model returns is caught by itself. Where the Trainer computes it (label
    smoothing, `compute_loss_func`, an own `compute_loss`, TRL's SFT and DPO), say so once:

        trainer.compute_loss = callback.loss(trainer.compute_loss)

    Each checkpoint holds what `train(resume_from_checkpoint=...)` needs for the same records.

    Args:
        validation: measure what needs no optimizer step, such as the equivariance error, at each
            evaluation too, as `Monitor.validate` does, on the first samples of the evaluation's
            data set: those of its first batch, without shuffling, which stay the same.

    The others are those of `eqtoolbox.attach`.

    Example:
        >>> EqCallback(run_dir="runs/a", budget=None).run_dir
        'runs/a'
    """

    _held: Any = None  # batch of the evaluations; empty where none can be had
    _topics: Any = ()
    _decorate: ClassVar = (
        "before train(), trainer.compute_loss = callback.loss(trainer.compute_loss)"
    )

    def loss(self, function: F) -> F:
        """Decorate `trainer.compute_loss`; what it notes when a probe calls it is forgotten."""
        return super().loss(quietly(function))

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **others: Any
    ) -> None:
        if state.global_step > 0:
            self._read(args, state.global_step)
        if args.label_smoothing_factor and self._fit.function is None:
            warnings.warn(
                "eqtoolbox: with label_smoothing_factor the Trainer computes the loss, not the "
                "model: " + self._decorate,
                RuntimeWarning,
                stacklevel=2,
            )
        known = {"steps": state.max_steps}
        monitor = self.start(model, optimizer, state.global_step, _History(state), **known)
        self._topics, self._held = topics(monitor.probes), None
        if args.bf16 or args.fp16:
            kind = torch.bfloat16 if args.bf16 else torch.float16
            monitor.autocast_inside(args.device.type, kind)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.monitor is not None:
            self.monitor.count_from(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        folder = _checkpoint(args, state.global_step)
        if self.monitor is not None and state.is_world_process_zero and folder.is_dir():
            torch.save(self.state_dict(), folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.finish()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, eval_dataloader: Any = None, **others: Any
    ) -> None:
        if not self.validation or self.monitor is None or eval_dataloader is None:
            return
        if self._held is None:
            self._held = _first_batch(eval_dataloader, args.eval_batch_size)
        if self._held:
            self.monitor.validate(map_tensors(lambda x: x.to(args.device), self._held))

    def add_to_card(self, card: Any) -> None:
        """Put the section on this run into a model card, in the place of an earlier one.

        With EQTOOLBOX=off there is none, and the card stays as it is.

        Args:
            card: path of a README.md, made where it is missing; or a `huggingface_hub.ModelCard`,
                which is changed and not saved. `create_model_card` and `push_to_hub` of the Trainer
                write the file anew: call this after them.

        Raises:
            ValueError: the callback keeps no records.
        """
        if self.run_dir is None:
            raise ValueError("a model card needs records: give EqCallback(run_dir=...)")
        if switched_off():
            return
        section = model_card_section(Run(self.run_dir, topics=self._topics))
        if hasattr(card, "text"):
            card.text = with_section(card.text, section)
            return
        path = Path(card)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(with_section(before, section), encoding="utf-8")

    def _read(self, args: Any, step: int) -> None:
        """Take the state of the checkpoint that training goes on from, if it is there."""
        given = args.resume_from_checkpoint
        folders = [Path(given)] if isinstance(given, str) else []
        for folder in (*folders, _checkpoint(args, step)):
            if (folder / STATE).is_file():
                self.load_state_dict(torch.load(folder / STATE, map_location="cpu"))
                return


def quietly(function: F) -> F:
    """A Trainer's method that leaves no trace in the Trainer where a probe evaluates it."""
    trainer = getattr(function, "__self__", None)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if trainer is None or current() is None:
            return function(*args, **kwargs)
        with quiet(trainer):
            return function(*args, **kwargs)

    return called  # type: ignore[return-value]


@contextmanager
def quiet(trainer: Any) -> Iterator[None]:
    """Scope in which a Trainer's numbers and lists are copies and it talks to no other process.

    TRL's `compute_loss` counts tokens, appends to metrics and gathers them from all processes.
    """
    own = dict(vars(trainer))
    alone = {"accelerator": _Alone(own["accelerator"])} if "accelerator" in own else {}
    try:
        vars(trainer).update({k: _own(v) for k, v in own.items()} | alone)
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(own)


class _Alone:
    """An Accelerator as one process alone may use it: what others would answer is its own."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        if name in ("gather", "gather_for_metrics", "reduce", "pad_across_processes"):
            return lambda tensor, *args, **kwargs: tensor
        return getattr(self._accelerator, name)


def _own(value: Any, depth: int = 3) -> Any:
    """A copy of what a step may change in place: dicts and short lists, down to some depth."""
    if isinstance(value, dict) and depth:
        fresh = copy.copy(value)
        for key, inner in value.items():
            fresh[key] = _own(inner, depth - 1)
        return fresh
    return copy.copy(value) if isinstance(value, (list, set)) and len(value) <= SHORT else value


def _first_batch(loader: Any, size: int) -> Any:
    """The first samples of a loader's data set, collated, no iterator and no stream disturbed."""
    dataset = loader.dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        warnings.warn(
            "eqtoolbox: validation=True needs an evaluation data set with len() and [i], got "
            f"{type(dataset).__name__}: nothing is measured at evaluations",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    with random_streams():
        return loader.collate_fn([dataset[i] for i in range(min(size, len(dataset)))])


class _History:
    """`log_history` of a TrainerState as a tracker."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._state.log_history.append({**numbers, "epoch": self._state.epoch, "step": step})


def _checkpoint(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"
