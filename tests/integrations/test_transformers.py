"""A Hugging Face Trainer with the callback: same training, right numbers, resumed runs."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import eqtoolbox as eq
from eqtoolbox.integrations.transformers import EqCallback
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from tests.integrations.dense import sharpness
from tests.integrations.records import rows
from tests.neutrality.test_neutrality import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own advice

STEPS = 4


class Data(torch.utils.data.Dataset[Any]):
    """Token sequences of two lengths, so that micro-batches have different weights."""

    def __init__(self, samples: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, 11, (samples, 6), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        labels = self.tokens[i].clone()
        labels[: i % 3] = -100
        return {"input_ids": self.tokens[i], "labels": labels}


def gpt(dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class Trail(TrainerCallback):
    """Digest of weights, optimizer and random streams after each step, and the weights before."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_step_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, **others: Any
    ) -> None:
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def on_step_end(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **others: Any
    ) -> None:
        self.rows.append(
            digest(
                model.state_dict(), optimizer.state_dict(), torch.get_rng_state(), model.training
            )
        )


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.05, "seed": 0,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 2, "dataloader_pin_memory": False, "optim": "sgd",
        "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**defaults, **options})


def train(
    folder: Path,
    *callbacks: Any,
    model: Any = None,
    resume: Any = None,
    smooth: bool = False,
    scaler: float | None = None,
    **options: Any,
) -> Any:
    trail = Trail()
    trainer = Trainer(
        model=model or gpt(), args=arguments(folder, **options), train_dataset=Data(),
        callbacks=[*callbacks, trail],
    )  # fmt: skip
    if scaler is not None:  # which Accelerate itself makes on an accelerator only
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scaler)
        trainer.accelerator.native_amp = True
    if smooth and callbacks:
        trainer.compute_loss = callbacks[0].loss(trainer.compute_loss)
    trainer.train(resume_from_checkpoint=resume)
    trainer.trail = trail
    return trainer


def callback(run_dir: Path | None, **options: Any) -> EqCallback:
    probes = [Curvature(k=1), Conservation()]
    defaults: dict[str, Any] = {
        "probes": probes, "schedule": 1, "budget": None, "on_error": "raise"
    }  # fmt: skip
    return EqCallback(run_dir=run_dir, **{**defaults, **options})


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "smoothed": {"label_smoothing_factor": 0.1, "smooth": True},
    "bf16": {"bf16": True},
    "fused": {"optim": "adamw_torch_fused"},
    "fp16": {"fp16": True, "scaler": 1024.0},
    "fp16, fused": {"fp16": True, "scaler": 1024.0, "optim": "adamw_torch_fused"},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical_and_the_loss_is_the_one_that_trains(
    tmp_path: Path, case: str
) -> None:
    alone = train(tmp_path, **CASES[case])
    watched = train(tmp_path, callback(tmp_path / "run", schedule=2), **CASES[case])
    assert watched.trail.rows == alone.trail.rows
    assert len(alone.trail.rows) == STEPS
    run = eq.Run(tmp_path / "run")
    assert list(run.series("curvature/sharpness")[0]) == [0, 2]
    cosine = run.series("monitor/closure_grad_cos")[1]
    assert cosine == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-4 if case == "bf16" else 1e-6
    )
    if case != "bf16":
        ratio = run.series("monitor/closure_grad_ratio")[1]
        assert ratio == pytest.approx([1.0] * len(run.series("curvature/sharpness")[0]), rel=1e-4)
    told = {
        row["step"]: row["eqtoolbox/curvature/sharpness"]
        for row in watched.state.log_history
        if "eqtoolbox/curvature/sharpness" in row
    }
    assert told == dict(zip(*run.series("curvature/sharpness"), strict=True))


def test_the_end_of_the_training_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, start = [], EqCallback.start
    monkeypatch.setattr(
        EqCallback, "start", lambda *a, steps, **k: (told.append(steps), start(*a, steps=steps))[1]
    )
    train(tmp_path, callback(tmp_path / "run"))
    assert told == [STEPS]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_sharpness_is_that_of_a_dense_hessian(tmp_path: Path, smoothing: float) -> None:
    seen: list[Any] = []
    model = gpt(dropout=0.0)
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    data = Data()
    smooth = {"label_smoothing_factor": smoothing, "smooth": True} if smoothing else {}
    watched = train(tmp_path, callback(tmp_path / "run"), model=model, **smooth)
    values = eq.Run(tmp_path / "run").series("curvature/sharpness")[1]
    labels_of = {tuple(d["input_ids"].tolist()): d["labels"] for d in (data[i] for i in range(24))}

    def loss(m: nn.Module, tokens: Tensor) -> Tensor:
        labels = torch.stack([labels_of[tuple(row)] for row in tokens.tolist()])
        logits = m(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        target = labels[:, 1:].flatten()
        logs = logits.log_softmax(-1)
        kept = target != -100
        nll = -logs[kept, target[kept]]
        uniform = -logs[kept].mean(-1)
        total = (1 - smoothing) * nll.sum() + smoothing * uniform.sum()
        return total / (labels != -100).sum()  # the Trainer counts the first token too

    twin = gpt(dropout=0.0).double()
    twin.set_attn_implementation("eager")
    for step in (0, STEPS - 1):
        tokens = seen[step]["input_ids"]
        weights = watched.trail.weights[step]
        expected = sharpness(twin, lambda m, tokens=tokens: loss(m, tokens), weights)
        assert values[step] == pytest.approx(expected, rel=2e-3)


def test_a_resumed_training_gives_the_records_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    """Checkpoints after steps 2 and 4; a new Trainer, model and callback go on from the first."""
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = train(tmp_path / "a", callback(tmp_path / "whole"), **options)
    train(tmp_path / "b", callback(tmp_path / "cut"), **options)
    again = train(
        tmp_path / "b",
        callback(tmp_path / "cut"),
        resume=str(tmp_path / "b" / "checkpoint-2"),
        **options,
    )
    assert again.trail.rows[-1] == whole.trail.rows[-1]
    assert {r.segment for r in eq.Run(tmp_path / "cut").records()} == {0, 1}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_without_the_state_a_resumed_run_counts_on_and_says_so(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "b", callback(tmp_path / "run"), **options)
    (tmp_path / "b" / "checkpoint-2" / "eqtoolbox.pt").unlink()
    train(
        tmp_path / "b",
        callback(tmp_path / "run", on_error="warn"),
        resume=str(tmp_path / "b" / "checkpoint-2"),
        **options,
    )
    run = eq.Run(tmp_path / "run")
    assert any("load_state_dict() was not called" in e["message"] for e in run.events)
    assert list(run.series("curvature/sharpness")[0]) == list(range(STEPS))


def test_label_smoothing_without_the_trainers_loss_says_what_to_write(tmp_path: Path) -> None:
    watching = callback(tmp_path / "run", on_error="warn")
    with pytest.warns(RuntimeWarning, match=r"trainer.compute_loss = callback.loss\("):
        train(tmp_path, watching, label_smoothing_factor=0.1, max_steps=1)
    (row, *_) = eq.Run(tmp_path / "run").records("curvature/sharpness")
    assert row.status == "not_applicable"


class Counting(Trainer):
    """Counts and collects in `compute_loss`, as TRL's trainers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen, self.metrics = 0, {"train": defaultdict(list)}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = 2 * super().compute_loss(model, inputs, *args, **kwargs)
        self.seen += inputs["input_ids"].numel()
        value = self.accelerator.gather_for_metrics(loss.detach()).mean().item()
        self.metrics["train"]["loss"].append(value)
        return loss


@pytest.mark.parametrize("size", [1, 2])
def test_what_the_trainers_own_loss_notes_is_noted_once_and_alone(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(watched: bool) -> Any:
        trainer = Counting(model=gpt(), args=arguments(tmp_path / "out"), train_dataset=Data())
        if size > 1:  # with other processes, one that asks them alone would wait for ever
            calls = iter(range(STEPS))
            own = lambda loss: (next(calls), loss)[1]
            monkeypatch.setattr(trainer.accelerator, "gather_for_metrics", own)
        if watched:
            added = callback(tmp_path / f"run{size}")
            trainer.add_callback(added)
            trainer.compute_loss = added.loss(trainer.compute_loss)
        trainer.train()
        return trainer

    alone, watched = fit(False), fit(True)
    assert watched.seen == alone.seen
    assert watched.metrics == alone.metrics
    run = eq.Run(tmp_path / f"run{size}")
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-5
    )
    assert run.series("monitor/closure_grad_ratio")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-5
    )
    assert run.series("training/loss")[1] == pytest.approx(alone.metrics["train"]["loss"], rel=1e-5)
    assert not [r for r in run.records() if r.status == "failed"]
