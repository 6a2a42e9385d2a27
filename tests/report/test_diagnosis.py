"""Diseases: each is named first, its look-alike is not, and healthy runs warn of nothing."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqtoolbox.record.facts import Facts
from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.report.diagnosis.diseases import DISEASES
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Finding
from tests.report.runs import series, write_run

MakeRun = Callable[..., Run]

STEPS = 16  # measured ones, every tenth
FALLING = [2.3 * 0.8**k for k in range(STEPS)]
FLAT = [2.3 + 0.01 * (-1) ** k for k in range(STEPS)]
GUESS = {"constant_loss": 2.3}
WELL: dict[str, Any] = {  # what a healthy network shows beside its loss
    "update_ratio": (0.01, {"most": 0.02, "least": 0.005, "weight": 5.0}),
    "gradient_norm": (0.5, {"used": 0.5}),
    "gradient_depth": (0.4, {"first": "0.weight", "last": "8.weight", "layers": 5}),
    "own_batch": (-0.02, {"loss": 2.3}),
    "output_spread": (0.9, {}),
    "halves": (0.6, {"samples": 32}),
    "input_scale": (2.0, {"rms": 1.0, "columns": 10, "constant": 0}),
    "silent": (0.1, {"layers": ("2",), "units": (64,), "batches": 5}),
    "weight_decay": (0.01, {"weight": 5.0}),
    "eval_mode": (0.0, {"root": False, "named": ()}),
    "probabilities": (0.0, {}),
}


def signs_of(losses: list[float], **changed: Any) -> list[Record]:
    """The vital signs of a run: healthy but for what is changed; of None nothing is recorded."""
    shown = {**WELL, **GUESS, **changed}
    rows = []
    for k, loss in enumerate(losses):
        step = 10 * k
        told = loss if np.isfinite(loss) else "nan"
        facts = Facts({"losses": [told], "first": step})
        rows.append(Record(step=step, name="vital/losses", value=loss, facts=facts))
        if not np.isfinite(loss):
            continue
        for name, given in shown.items():
            value, beside = given if isinstance(given, tuple) else (given, {})
            value = value[k] if isinstance(value, list) else value
            if value is not None:
                full = name if "/" in name else f"vital/{name}"
                rows.append(Record(step=step, name=full, value=value, facts=Facts(beside)))
    return rows


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write records into a fresh run directory and read it back."""
    count = iter(range(100))

    def make(*records: Iterable[Record], **info: Any) -> Run:
        rows = [r for group in records for r in group]
        return Run(write_run(tmp_path / f"run{next(count)}", rows, format=2, **info))

    return make


def grave(run: Run) -> list[Finding]:
    return [f for f in run.findings() if f.level in ("alarm", "warning")]


STALE = "optimizer.zero_grad() is missing, and .grad is a sum over steps"
RATIO = "monitor/closure_grad_ratio"
COSINE = {"monitor/closure_grad_cos": 1.0}
HEAVY = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "momentum": 0.995}]}}
DECAY = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "weight_decay": 0.5}]}}
NO_DECAY = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "weight_decay": 0.0}]}}
CUT = {"entries": 90, "total": 100, "layers": ("0", "2"), "before": False, "steps": 16}
SHRINKING = [0.01 + k / 100 for k in range(STEPS)]
SPIKED = [2.0 * 0.9**k for k in range(40)]
SPIKED[25] = 3.0
NOISY = [2.0 * 0.9**k * (1.3 if k % 2 else 1.0) for k in range(40)]
GROWING = [2.3 * 3.0**k for k in range(6)] + [float("nan")] * 10
GAPPED = [float("nan") if k in (4, 9) else loss for k, loss in enumerate(FALLING)]
GROWN = [2.3 * 1.4**k for k in range(STEPS)]
RUNAWAY = [40.0 if k < 3 else -(40.0 * 3.0 ** (k - 3)) for k in range(STEPS)]
MSE = {"kind": "mse_loss"}
CALM = [*FALLING[:6], *[float("nan")] * 10]

FAR = [4e10 * (1 + 0.01 * (-1) ** k) for k in range(STEPS)]
PRICES = {"kind": "mse_loss", "size": 2e5}

# id, the run that has it, the look-alike that has not (losses, signs, info)
TWINS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("zero-grad-forgotten",
     (FLAT, {RATIO: (3.0, {"cause": STALE}), "monitor/closure_grad_cos": 0.2}, {}),
     (FALLING, {RATIO: 1.0, **COSINE}, {})),
    ("wrong-sign", ([-x for x in GROWN], {"loss_sign": (-1.0, MSE), "constant_loss": None}, {}),
     ([-x for x in FALLING], {"loss_sign": (-1.0, MSE), "constant_loss": None}, {})),
    ("unbounded-loss", (RUNAWAY, {"constant_loss": None}, {}),
     ([40.0 - 60 * k**0.5 for k in range(STEPS)], {"constant_loss": None}, {})),
    ("weights-written-back",
     (FLAT, {"written_back": ([None, *[10.0] * 15], {"began": 0, "times": 1})}, {}),
     (FLAT, {"update_ratio": (0.0, {"most": 0.0})}, {})),
    ("broadcast-targets",
     (FLAT, {"broadcast": (1.0, {"prediction": (64, 1), "target": (64,)})}, {}), (FALLING, {}, {})),
    ("far-above-guess", ([90 * 0.8**k for k in range(STEPS)], {"constant_loss": 0.2}, {}),
     ([90.0 * 0.5**k for k in range(STEPS)], {"constant_loss": 0.2}, {})),
    ("momentum-too-high", (FLAT, {"own_batch": (0.3, {"loss": 2.3})}, HEAVY),
     (FALLING, {}, HEAVY)),
    ("diverged", (GROWING, {}, {}), (CALM, {}, {})),
    ("not-finite", (CALM, {}, {}), (GROWING, {}, {})),
    ("softmax-twice", (FLAT, {"probabilities": 1.0}, {}), (FALLING, {}, {})),
    ("softmax-over-batch",
     (FLAT, {"across": 1.0, "halves": (0.0, {"samples": 32}), "update_ratio": 0.02}, {}),
     (FLAT, {"across": 0.0}, {})),
    ("rectified-logits", (FALLING, {"rectified": (0.9, {"never": 5, "classes": 10})}, {}),
     (FALLING, {"silent": (0.4, {"layers": ("2",), "units": (64,), "batches": 5})}, {})),
    ("dropout-too-strong",
     (FLAT, {"dropout": (0.95, {"layer": "3"}), "halves": (0.0, {"samples": 32}),
             "update_ratio": 0.02}, {}),
     (FALLING, {"dropout": (0.95, {"layer": "3"})}, {})),
    ("training-in-eval-mode", (FALLING, {"eval_mode": (2.0, {"root": True, "named": ("1",)})}, {}),
     (FALLING, {"eval_mode": (2.0, {"root": False, "named": ("1",)})}, {})),
    ("constant-input",
     (FLAT, {"input_scale": (1.0, {"rms": 1.0, "columns": 9, "constant": 9})}, {}),
     (FALLING, {"input_scale": (1.0, {"rms": 1.0, "columns": 9, "constant": 2})}, {})),
    ("gradient-cleared",
     (FLAT, {"gradient_norm": (0.5, {"cleared": True}), "update_ratio": (0.0, {"most": 0.0})}, {}),
     (FLAT, {"gradient_norm": (0.5, {"used": 0.5, "cleared": False}),
             "update_ratio": (0.0, {"most": 0.0})}, {})),
    ("data-in-order", (FLAT, {"own_batch": (-0.3, {"loss": 2.3}), "halves": 0.95}, {}),
     (FLAT, {"own_batch": (-0.3, {"loss": 2.3}), "halves": 0.95}, {})),
    ("targets-not-scaled",
     (FAR, {"constant_loss": (1e8, PRICES), "silent": (0.6, {"layers": ("2",), "units": (64,),
                                                            "batches": 5})}, {}),
     (FAR, {"constant_loss": (1e8, PRICES | {"size": 1.0})}, {})),
    ("constant-target", (FALLING, {"constant_loss": (0.0, {"alike": True})}, {}),
     (FALLING, {"constant_loss": (0.0, {"alike": False})}, {})),
    ("inputs-not-scaled",
     (FLAT, {"input_scale": (4e4, {"rms": 200.0, "columns": 9, "constant": 0})}, {}),
     (FALLING, {"input_scale": (30.0, {"rms": 3.0, "columns": 9, "constant": 0})}, {})),
    ("decay-too-strong",
     (FLAT, {"weight_decay": 0.9, "update_ratio": (0.01, {"most": 0.02, "weight": 5.0})}, DECAY),
     (FALLING, {}, DECAY)),
    ("no-gradient", (FALLING, {"no_gradient": (90.0, CUT | {"before": True})}, {}),
     (FALLING, {"no_gradient": (0.0, CUT | {"entries": 0})}, {})),
    ("always-clipped", (FLAT, {RATIO: 1e-3, **COSINE}, {}),
     (FALLING, {RATIO: [0.3] * 3 + [1.0] * 13, **COSINE}, {})),
    ("learning-rate-too-high", (FLAT, {"own_batch": (0.3, {"loss": 2.3})}, {}),
     (FALLING, {"own_batch": ([0.3, *[-0.02] * 15], {"loss": 2.3})}, {})),
    ("dead-units", (FLAT, {"silent": (0.6, {"layers": ("2",), "units": (64,), "batches": 5})}, {}),
     (FALLING, {"silent": (0.6, {"layers": ("2",), "units": (64,), "batches": 1})}, {})),
    ("dead-layer", (FLAT, {"silent": (1.0, {"layers": ("2",), "units": (64,), "batches": 5})}, {}),
     (FLAT, {"silent": (0.9, {"layers": ("2",), "units": (64,), "batches": 5})}, {})),
    ("exploding-gradient", (FLAT, {"gradient_norm": [5e4, *[0.5] * 15]}, {}),
     (FALLING, {"gradient_norm": [20.0, *[0.5] * 15]}, {})),
    ("vanishing-gradient",
     (FLAT, {"gradient_depth": (1e-6, {"first": "0.weight", "last": "8.weight", "layers": 5})}, {}),
     (FALLING, {"gradient_depth": (1e-2, {"first": "0.weight", "last": "8.weight", "layers": 5})},
      {})),
    ("zero-gradient",
     (FLAT, {"gradient_norm": 0.0, "update_ratio": (0.0, {"most": 0.0})}, {}),
     (FLAT, {"gradient_norm": 1e-9, "update_ratio": (0.0, {"most": 0.0})}, {})),
    ("schedule-ended",
     (FLAT, {"training/learning_rate": [0.1 * 0.1**k for k in range(STEPS)],
             "update_ratio": (1e-9, {"most": 1e-9})}, {}),
     (FLAT, {"training/learning_rate": [0.1 * 0.9**k for k in range(STEPS)]}, {})),
    ("learning-rate-too-low",
     (FLAT, {"update_ratio": (1e-6, {"most": 2e-6}), "own_batch": (-1e-6, {"loss": 2.3})}, {}),
     (FALLING, {"update_ratio": (1e-4, {"most": 2e-4})}, {})),
    ("collapsed-representation",
     (FALLING, {"constant_loss": None, "output_spread": [0.9, *[0.001] * 15]}, {}),
     (FALLING, {"constant_loss": None, "output_spread": [0.9, *[0.5] * 15]}, {})),
    ("constant-output", (FLAT, {"output_spread": 1e-7}, {}), (FALLING, {"output_spread": 0.1}, {})),
    ("saturated-attention", (FALLING, {"attention_entropy": (0.05, {"logit": 90.0})}, {}),
     (FALLING, {"attention_entropy": (0.6, {"logit": 5.0})}, {})),
    ("batch-norm-on-tiny-batches", (FALLING, {"batch_norm": 2.0}, {}),
     (FALLING, {"batch_norm": 32.0}, {})),
    ("overfit", (FALLING, {"held_out": [2.0, 1.5, *[2.2] * 14]}, {}),
     (FALLING, {"held_out": [1.1 * x for x in FALLING]}, {})),
    ("loss-spike", (SPIKED, {}, {}), (NOISY, {}, {})),
    ("loss-not-finite-at-times", (GAPPED, {}, {}), (CALM, {}, {})),
    ("moving-target",
     (FLAT, {"halves": (0.95, {"samples": 32}), "own_batch": (-0.2, {"loss": 2.3})}, {}),
     (FLAT, {"halves": (0.95, {"samples": 32}), "own_batch": (-0.002, {"loss": 2.3})}, {})),
    ("no-signal", (FLAT, {"halves": (-0.02, {"samples": 32}), "update_ratio": 0.02}, {}),
     (FALLING, {"halves": (-0.02, {"samples": 32})}, {})),
    ("not-learning", (FLAT, {}, {}), (FALLING, {}, {})),
    ("norms-grow", (FALLING, {"conservation/charge/scale": [1.0 + 3 * k for k in range(STEPS)]},
                    NO_DECAY),
     (FALLING, {"conservation/charge/scale": [1.0 + k / 50 for k in range(STEPS)]}, NO_DECAY)),
]  # fmt: skip


def targets(rows: list[Record], means: list[float], **facts: Any) -> list[Record]:
    """The same rows, whose batches have targets of these means."""
    return [
        dataclasses.replace(r, facts=Facts({**facts, "mean": means[r.step // 10]}))
        if r.name == "vital/constant_loss"
        else r
        for r in rows
    ]


@pytest.mark.parametrize(("id", "sick", "alike"), TWINS, ids=[row[0] for row in TWINS])
def test_a_disease_is_named_first_and_its_look_alike_is_not(
    id: str, sick: Any, alike: Any, make_run: MakeRun
) -> None:
    losses, changed, info = sick
    rows = signs_of(losses, **changed)
    if id == "decay-too-strong":  # the norm falls, which one value for all steps does not show
        rows = [
            dataclasses.replace(r, facts=Facts({"weight": 5.0 * 0.8 ** (r.step / 10)}))
            if r.name == "vital/weight_decay"
            else r
            for r in rows
        ]
    if id == "data-in-order":
        rows = targets(rows, [float(k % 5) for k in range(STEPS)], variance=0.5, samples=32.0)
    found = make_run(rows, **info).findings()
    ill = [f for f in found if f.level != "good" and f.id]
    assert ill[0].id == id, [(f.id, f.text) for f in ill]
    assert 1 <= len(ill[0].remedy) <= 3 and ill[0].cause
    losses, changed, info = alike
    assert id not in {f.id for f in make_run(signs_of(losses, **changed), **info).findings()}


def test_a_gradient_that_the_loop_divides_is_not_clipped(make_run: MakeRun) -> None:
    """One multiple of every norm; what clipping leaves has one length."""
    ids = lambda rows: {f.id for f in make_run(rows).findings()}
    norms = [2.0 * 0.8**k for k in range(STEPS)]
    divided = signs_of(FALLING, gradient_norm=norms, **{RATIO: 0.03, **COSINE})
    assert "always-clipped" not in ids(divided)
    clipped = signs_of(FALLING, gradient_norm=norms, **{RATIO: [0.02 / n for n in norms], **COSINE})
    assert "always-clipped" in ids(clipped)


@pytest.mark.parametrize(("fall", "said"), [(0.0, "does not fall"), (0.25, "hardly falls")])
def test_a_loss_that_falls_a_little_is_not_said_to_stay(
    fall: float, said: str, make_run: MakeRun
) -> None:
    losses = [x - fall * min(1.0, k / 8) for k, x in enumerate(FLAT)]
    rows = [
        dataclasses.replace(r, facts=Facts({"weight": 5.0 * 0.8 ** (r.step / 10)}))
        if r.name == "vital/weight_decay"
        else r
        for r in signs_of(losses, weight_decay=0.9)
    ]
    assert said in make_run(rows, **DECAY).findings()[0].text


def test_every_disease_of_the_table_has_its_twins() -> None:
    assert sorted(row[0] for row in TWINS) == sorted(disease.id for disease in DISEASES)
    known = {disease.id for disease in DISEASES}
    for disease in DISEASES:
        assert 1 <= len(disease.remedy) <= 3 and disease.told_from and disease.source
        assert disease.id not in disease.explains and disease.id in known


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_warns_of_nothing_and_says_so(seed: int, make_run: MakeRun) -> None:
    noise = np.random.default_rng(seed).normal(1, 0.1, STEPS)
    run = make_run(signs_of([float(x) for x in FALLING * noise]))
    assert grave(run) == []
    assert "nothing-unusual" in {f.id for f in run.findings()}


@pytest.mark.parametrize("losses", [FLAT, CALM, GROWING])
def test_a_run_that_did_not_learn_is_not_praised(losses: list[float], make_run: MakeRun) -> None:
    calm = [Record(step=s, name="curvature/stability", value=0.1) for s in range(0, 160, 10)]
    assert "good" in {f.level for f in make_run(signs_of(FALLING), calm).findings()}
    found = make_run(signs_of(losses), calm).findings()
    assert "good" not in {f.level for f in found}
    assert [f for f in found if "below the edge" in f.text]


def test_constant_outputs_are_not_praised(make_run: MakeRun) -> None:
    run = make_run(signs_of(FALLING, output_spread=1e-9))
    assert "good" not in {f.level for f in run.findings()}


@pytest.mark.parametrize(
    ("losses", "guess", "state"),
    [
        (FALLING, 2.3, "learned"),
        (FALLING, None, "learned"),
        (FLAT, 2.3, "stuck"),
        ([80 * 0.5**k + 2.3 for k in range(STEPS)], 2.3, "stuck"),  # as good as a guess
        ([0.1] * STEPS, 2.3, "learned"),  # before this run
        ([2.3 + k for k in range(STEPS)], 2.3, "grew"),
        (GROWING, 2.3, "not finite"),
        (FALLING[:3], 2.3, "unknown"),
        ([-float(k) / STEPS for k in range(1, STEPS + 1)], None, "learned"),  # a cosine
    ],
)
def test_whether_a_run_learned(
    losses: list[float], guess: float | None, state: str, make_run: MakeRun
) -> None:
    assert Signs(make_run(signs_of(losses, constant_loss=guess))).state == state


def test_a_guess_of_labels_that_came_once_is_no_measure(make_run: MakeRun) -> None:
    losses = [5.7 - 0.14 * k for k in range(STEPS)]
    guesses = [2.9 + k / 100 for k in range(STEPS)]
    for once, state in ((0.9, "learned"), (0.1, "stuck")):
        run = make_run(signs_of(losses, constant_loss=(guesses, {"once": once}), own_batch=None))
        assert Signs(run).state == state


def test_a_loss_that_climbs_learned_nothing_whichever_way_its_sign_is_wrong(
    make_run: MakeRun,
) -> None:
    """Minus a loss that is minimised, or the loss itself that is maximised; both are right."""
    up = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "maximize": True}]}}
    for sign, losses, option, wrong in (
        (-1.0, [-x for x in GROWN], {}, True),
        (1.0, GROWN, up, True),
        (-1.0, [-x for x in FALLING], up, False),
    ):
        run = make_run(signs_of(losses, loss_sign=(sign, MSE), constant_loss=None), **option)
        assert (Signs(run).state == "stuck") is wrong
        assert ("wrong-sign" in {f.id for f in run.findings()}) is wrong


def test_a_loss_that_rests_far_below_zero_fell_without_bound(make_run: MakeRun) -> None:
    rests = [40.0, 30.0, 10.0, *(-(10.0 ** (2 * k)) for k in range(1, 8)), *[-1e16] * 6]
    assert [f.id for f in grave(make_run(signs_of(rests, constant_loss=None)))] == [
        "unbounded-loss"
    ]


def test_what_a_disease_explains_is_told_once(make_run: MakeRun) -> None:
    run = make_run(signs_of(FLAT, gradient_depth=(1e-6, {"layers": 5}), output_spread=1e-8))
    assert [f.id for f in grave(run)] == ["vanishing-gradient"]


def test_symmetries_of_a_preset_are_looked_at_and_claimed_ones_warn(make_run: MakeRun) -> None:
    name = "equivariance/relative_error/cyclic4"
    rows = [Record(step=s, name=name, value=0.5, floor=1e-6) for s in range(0, 50, 10)]
    assert grave(make_run(rows, preset="standard")) == []
    (finding,) = grave(make_run(rows, preset=None))
    assert finding.id == "broken-symmetry" and finding.remedy


def test_a_law_that_breaks_is_no_run_in_which_nothing_is_unusual(tmp_path: Path) -> None:
    losses = series("training/loss", [3.0 - 0.1 * i for i in range(20)])
    broken = series("noether/first_order/rescale", [0.5] * 5, floor=1e-7, verdict="violated")
    calm, odd = (
        {f.id for f in Run(write_run(tmp_path / name, rows)).findings()}
        for name, rows in {"calm": losses, "odd": losses + broken}.items()
    )
    assert "nothing-unusual" in calm
    assert "nothing-unusual" not in odd and "broken-law" in odd


@pytest.mark.parametrize(("decay", "rests", "told"), [(0.1, 0.9, 1), (1e-3, 0.9, 0), (0.1, 0.2, 0)])
def test_decay_that_lets_a_run_learn_but_not_far_is_a_note(
    decay: float, rests: float, told: bool, make_run: MakeRun
) -> None:
    losses = [rests + float(x) for x in FALLING]
    option = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "weight_decay": decay}]}}
    found = make_run(signs_of(losses, constant_loss=losses[0]), **option).findings()
    assert [f.level for f in found if f.id == "decay-too-strong" and f.remedy] == ["note"] * told
    assert ("nothing-unusual" in {f.id for f in found}) is not bool(told)


def test_a_run_that_loses_a_symmetry_is_not_one_in_which_nothing_is_unusual(
    make_run: MakeRun,
) -> None:
    lost = Facts({"lost": True, "keep": 0.78, "kept": 0.97})
    rows = [
        Record(step=s, name=f"equivariance/{name}/cyclic4", value=value, floor=1e-6, facts=facts)
        for s in range(0, 150, 10)
        for name, value, facts in (("relative_error", 0.4, Facts({})), ("growth", 1.8, lost))
    ]
    kept = make_run(signs_of(FALLING), rows[::2], preset="standard").findings()
    assert "nothing-unusual" in {f.id for f in kept}
    found = make_run(signs_of(FALLING), rows, preset="standard").findings()
    assert "lost-symmetry" in {f.id for f in found}
    assert "nothing-unusual" not in {f.id for f in found}


@pytest.mark.parametrize(("preset", "usual"), [("standard", True), (None, False)])
def test_a_claim_that_is_violated_a_little_is_unusual(
    preset: str | None, usual: bool, make_run: MakeRun
) -> None:
    rows = [
        Record(step=s, name=f"equivariance/{name}/E3", value=value, floor=1e-7, verdict="violated")
        for s in range(0, 150, 10)
        for name, value in (("relative_error", 0.007), ("percent_of_loss", 0.001))
    ]
    found = make_run(signs_of(FALLING), rows, preset=preset).findings()
    assert grave(make_run(signs_of(FALLING), rows, preset=preset)) == []
    assert ("nothing-unusual" in {f.id for f in found}) is usual


def test_steps_of_which_no_loss_is_known_move_no_target(make_run: MakeRun) -> None:
    changed = {"halves": (0.95, {"samples": 32}), "own_batch": (-0.2, {})}
    assert [f.id for f in grave(make_run(signs_of(FLAT, **changed)))] == ["not-learning"]


def test_a_loss_that_was_lost_by_long_steps_is_not_laid_to_the_data(make_run: MakeRun) -> None:
    losses = [*FALLING[:4], 50.0, 4e3, float("nan"), *FALLING[7:]]
    found = make_run(signs_of(losses)).findings()
    assert "loss-not-finite-at-times" not in {f.id for f in found}


LONG = 200
TAIL = np.abs(np.random.default_rng(0).standard_t(1.2, LONG))
SURROGATE = np.random.default_rng(0).normal(-0.1, 0.1, LONG)
LEAPT = [2.3 * 0.97**k if k < 100 else max(0.3, 90 * 0.9 ** (k - 100)) for k in range(LONG)]
LOST = [*LEAPT[:100], *[90.0] * 100]


@pytest.mark.parametrize(
    ("losses", "of"),
    [
        ([float(x + 1.5 * 0.99**k) for k, x in enumerate(TAIL)], "heavy tails"),
        ([float(x) for x in np.where(np.arange(LONG) == 150, 2.0, SURROGATE)], "of both signs"),
        ([-2.3 - 0.05 * k for k in range(LONG)], "falling below 0"),
    ],
)
def test_a_loss_that_is_large_at_times_is_not_laid_to_long_steps(
    losses: list[float], of: str, make_run: MakeRun
) -> None:
    run = make_run(signs_of(losses, constant_loss=None))
    assert "learning-rate-too-high" not in {f.id for f in run.findings()}, of


def test_a_surrogate_about_zero_does_not_say_whether_the_run_learned(make_run: MakeRun) -> None:
    losses = [float(x) for x in np.random.default_rng(1).normal(-0.02, 0.1, LONG)]
    assert Signs(make_run(signs_of(losses, constant_loss=None))).state == "unknown"
    back = [-0.15 - 0.6 * np.exp(-(((k - 80) / 40) ** 2)) for k in range(LONG)]  # of a policy
    run = make_run(signs_of([float(x) for x in back], constant_loss=None))
    assert Signs(run).state == "unknown" and not grave(run)
    assert Signs(make_run(signs_of([x + 2 for x in losses], constant_loss=None))).state == "stuck"


def test_weights_that_are_thrown_are_laid_to_long_steps(make_run: MakeRun) -> None:
    rows = [
        dataclasses.replace(r, facts=Facts({"weight": 5.0 + r.step}))
        if r.name == "vital/weight_decay"
        else r
        for r in signs_of([40.0, 65.0, 30.0, *[2.31, 2.3] * 10])
    ]
    found = grave(make_run(rows))[0]
    assert (found.id, found.level) == ("learning-rate-too-high", "alarm")
    assert "does not fall below that of a guess" in found.text


@pytest.mark.parametrize(("losses", "level"), [(LEAPT, "warning"), (LOST, "alarm")])
def test_an_outlier_batch_that_throws_a_calm_run_is_named(
    losses: list[float], level: str, make_run: MakeRun
) -> None:
    (found,) = grave(make_run(signs_of(losses)))
    assert (found.id, found.level, found.step) == ("loss-spike", level, 1000)
    assert "outlier" in found.text and "0.129 to 90" in found.text
    long = {"own_batch": (0.3, {"loss": 2.3})}
    again = {f.id for f in make_run(signs_of(losses, **long)).findings()}
    assert ("learning-rate-too-high" in again) is (level == "alarm")


@pytest.mark.parametrize(
    ("wide", "corrupt", "told"),
    [(1.5, (), False), (0.1, (120,), True), (0.1, (60, 100, 140, 180), True)],
    ids=["heavy tail", "one batch", "one batch in every epoch"],
)
def test_a_spike_is_apart_from_the_tail_of_the_losses(
    wide: float, corrupt: tuple[int, ...], told: bool, make_run: MakeRun
) -> None:
    """Losses of single samples are mostly small and often large."""
    noise = np.exp(wide * np.random.default_rng(3).standard_normal(200))
    losses = noise * np.linspace(1.0, 0.3, 200)
    losses[list(corrupt)] *= 20
    ids = {f.id for f in make_run(signs_of(losses.tolist(), constant_loss=None)).findings()}
    assert ("loss-spike" in ids) is told


def test_many_losses_far_above_its_start_outrank_a_fall_but_one_throw_does_not(
    make_run: MakeRun,
) -> None:
    swings = [2.3] * 40 + [0.5, 0.5, 0.5, 90.0] * 40
    assert Signs(make_run(signs_of(swings))).state == "grew"
    assert Signs(make_run(signs_of(LEAPT))).state == "learned"


@pytest.mark.parametrize(
    ("rates", "id", "said"),
    [
        ([0.0] * STEPS, "learning-rate-too-low", "is 0 at all measured steps"),
        ([1e-7] * STEPS, "learning-rate-too-low", "the weights hardly move"),
        ([0.1] * 4 + [1e-9] * 12, "schedule-ended", "at step 40 of 151"),
        ([0.1] * 4 + [0.0] * 12, "schedule-ended", "from 0.1 to 0 at step 40"),
        ([1e-9] * 12 + [0.1] * 4, "learning-rate-too-low", "the weights hardly move"),  # a warm-up
        ([0.1] * 14 + [1e-9] * 2, "learning-rate-too-low", "the weights hardly move"),
    ],
)
def test_why_weights_hardly_move_is_told_from_the_learning_rate(
    rates: list[float], id: str, said: str, make_run: MakeRun
) -> None:
    still = {"update_ratio": (1e-8, {"most": 1e-8}), "training/learning_rate": rates}
    found = grave(make_run(signs_of(FLAT, **still)))[0]
    assert found.id == id and said in found.text


def test_weights_that_moved_before_a_schedule_ended_are_not_said_to_stay(make_run: MakeRun) -> None:
    rows = [
        dataclasses.replace(r, facts=Facts({"most": 0.03 * 0.1 ** (r.step / 10)}))
        if r.name == "vital/update_ratio"
        else r
        for r in signs_of(FLAT)
    ]
    assert "learning-rate-too-low" not in {f.id for f in make_run(rows).findings()}


def test_a_loss_that_is_zero_from_the_first_step_asks_nothing_and_a_later_one_was_learned(
    make_run: MakeRun,
) -> None:
    still = {"gradient_norm": 0.0, "update_ratio": (0.0, {"most": 0.0})}
    (found,) = grave(make_run(signs_of([0.0] * STEPS, constant_loss=None, **still)))
    assert found.id == "zero-gradient" and "softmax over a single logit" in found.text
    learned = signs_of([0.5, *[0.0] * (STEPS - 1)], gradient_norm=[0.5, *[0.0] * (STEPS - 1)])
    assert "zero-gradient" not in {f.id for f in make_run(learned).findings()}


@pytest.mark.parametrize(
    ("variance", "alike", "ordered"),
    [(0.5, False, True), (9.0, False, False), (0.0, True, True), (0.0, False, False)],
    ids=["sorted", "shuffled", "one class a batch", "made by the loss"],
)
def test_batches_that_differ_more_than_their_samples_are_in_order(
    variance: float, alike: bool, ordered: bool, make_run: MakeRun
) -> None:
    high = [2.3 if k % 2 else 9.0 for k in range(STEPS)]
    grown = {"silent": (0.9, {"layers": ("0",), "units": (64,), "batches": 5})}
    steps = {"own_batch": (-0.3, {"loss": 2.3}), "halves": 0.95}
    rows = signs_of(high, **grown, **steps)
    told = {"variance": variance, "samples": 32.0, "size": 5.0, "alike": alike}
    found = grave(make_run(targets(rows, [float(k % 5) for k in range(STEPS)], **told)))
    assert (found[0].id == "data-in-order") is ordered
    assert not ordered or [f.id for f in found] == ["data-in-order"]


@pytest.mark.parametrize(
    ("losses", "guess", "thrown"),
    [(FAR, None, False), (FAR, 1e8, False), ([2.3, 2.3, 40.0, *[2.3] * 13], None, True)],
    ids=["growing", "far above a guess", "thrown"],
)
def test_weights_that_have_to_grow_are_not_thrown(
    losses: list[float], guess: float | None, thrown: bool, make_run: MakeRun
) -> None:
    rows = [
        dataclasses.replace(r, facts=Facts({"weight": 5.0 + r.step}))
        if r.name == "vital/weight_decay"
        else r
        for r in signs_of(losses, constant_loss=guess)
    ]
    found = {f.id for f in make_run(rows).findings()}
    assert ("learning-rate-too-high" in found) is thrown


@pytest.mark.parametrize(("rest", "raised"), [(1.1, 1.5), (0.1, 1.5), (1.1, 0.01)])
def test_a_run_that_learned_and_rests_where_a_step_threw_it_had_too_high_a_rate(
    rest: float, raised: float, make_run: MakeRun
) -> None:
    rows = [
        dataclasses.replace(r, facts=Facts({"weight": 5.0 + r.step}))
        if r.name == "vital/weight_decay"
        else r
        for r in signs_of([2.3] * 6 + [rest] * 10, own_batch=[raised, *[-0.02] * 15])
    ]
    run = make_run(rows)
    thrown = rest > 1 and raised > 1
    assert Signs(run).state == "learned"
    assert [f.id for f in grave(run)] == (["learning-rate-too-high"] if thrown else [])


def test_momentum_that_brings_a_loss_back_up_is_named_though_it_fell(make_run: MakeRun) -> None:
    swings = [2.3] * 10 + [0.2] * 20 + [1.0] * 40
    assert Signs(make_run(signs_of(swings))).state == "learned"
    assert grave(make_run(signs_of(swings), **HEAVY))[0].id == "momentum-too-high"
    rests = [2.3] * 10 + [1.0] * 60  # as where labels are noise
    assert not grave(make_run(signs_of(rests), **HEAVY))


@pytest.mark.parametrize(
    ("columns", "spread", "told"), [(64, 0.003, True), (64, 0.5, False), (40_000, 0.003, False)]
)
def test_tiny_inputs_are_told_from_normalised_and_from_sparse_ones(
    columns: int, spread: float, told: bool, make_run: MakeRun
) -> None:
    scale = (4.0, {"rms": 0.002, "columns": columns, "constant": 0})
    dead = {"silent": (0.6, {"layers": ("0",), "units": (64,), "batches": 5})}
    run = make_run(signs_of(FLAT, input_scale=scale, output_spread=spread, **dead))
    assert [f.id for f in grave(run)] == [
        *(["inputs-not-scaled"] if told else ["dead-units", "not-learning"])
    ]
    run = make_run(signs_of(FALLING, input_scale=scale, output_spread=spread))
    assert "inputs-not-scaled" not in {f.id for f in run.findings()}


def test_large_inputs_account_for_units_that_died_though_the_run_learned(
    make_run: MakeRun,
) -> None:
    large = {"input_scale": (5.0, {"rms": 700.0, "columns": 8, "constant": 0})}
    dead = {"silent": (0.6, {"layers": ("0",), "units": (64,), "batches": 5})}
    (found,) = grave(make_run(signs_of(FALLING, **large, **dead)))
    assert (found.id, found.level) == ("inputs-not-scaled", "warning")
    assert not grave(make_run(signs_of(FALLING, **large)))
    fell = [785.0, 700.0, *[1.1] * 30]
    assert grave(make_run(signs_of(fell, **large)))[0].id == "inputs-not-scaled"


@pytest.mark.parametrize(("norm", "told"), [(0.7, False), (3e3, True)])
def test_gradients_explode_beside_the_usual_size_of_a_difference_near_zero(
    norm: float, told: bool, make_run: MakeRun
) -> None:
    losses = [3e-4, 3e-4, *[0.1 * (-1) ** k for k in range(14)]]
    changed = {"constant_loss": None, "gradient_norm": [*[0.3] * 15, norm]}
    found = {f.id for f in make_run(signs_of(losses, **changed)).findings()}
    assert ("exploding-gradient" in found) is told


def test_gradients_of_a_loss_that_is_as_large_do_not_explode(make_run: MakeRun) -> None:
    losses = [2.3, 2e4, *FALLING[2:]]
    run = make_run(signs_of(losses, gradient_norm=[0.5, 5e4, *[0.5] * 14]))
    assert "exploding-gradient" not in {f.id for f in run.findings()}


@pytest.mark.parametrize(("share", "state"), [(0.95, "little"), (0.99, "stuck"), (1.0, "stuck")])
def test_a_weak_signal_is_told_from_none_by_a_guess_on_the_same_batches(
    share: float, state: str, make_run: MakeRun
) -> None:
    guesses = np.exp(np.random.default_rng(0).normal(0, 0.5, STEPS)).tolist()  # batches differ
    rows = [
        dataclasses.replace(r, facts=Facts({"loss": share * guesses[r.step // 10]}))
        if r.name == "vital/own_batch"
        else r
        for r in signs_of([share * x for x in guesses], constant_loss=guesses, halves=0.05)
    ]
    run = make_run(rows)
    assert Signs(run).state == state
    (found,) = [f for f in run.findings() if f.id == "no-signal"]
    assert found.level == ("note" if state == "little" else "warning")
    assert found.text.startswith(
        "The signal is weak: the loss lies 5 %" if share < 0.97 else "No s"
    )


@pytest.mark.parametrize(("grows", "told"), [(True, False), (False, True)])
def test_an_offset_that_outgrows_the_spread_is_no_collapse(
    grows: bool, told: bool, make_run: MakeRun
) -> None:
    """Targets of 50 +- 1 under a loss of no known kind: the ratio falls, the spread does not."""
    size = [0.1, *[50.0 if grows else 0.1] * (STEPS - 1)]
    rows = [
        dataclasses.replace(r, facts=Facts({"spread": r.value * size[r.step // 10]}))
        if r.name == "vital/output_spread"
        else r
        for r in signs_of(FALLING, constant_loss=None, output_spread=[0.9, *[0.016] * (STEPS - 1)])
    ]
    ids = {f.id for f in make_run(rows).findings()}
    assert ("collapsed-representation" in ids) is told


@pytest.mark.parametrize(("losses", "told"), [(FALLING, False), (FLAT, True)])
def test_an_input_of_which_outputs_were_learned_is_not_constant(
    losses: list[float], told: bool, make_run: MakeRun
) -> None:
    constant = (1.0, {"rms": 1.0, "columns": 1, "constant": 1})
    run = make_run(signs_of(losses, input_scale=constant))
    assert ("constant-input" in {f.id for f in run.findings()}) is told
    blind = make_run(signs_of(losses, input_scale=constant, output_spread=1e-8))
    assert "constant-input" in {f.id for f in blind.findings()}


@pytest.mark.parametrize(
    ("losses", "first", "told"),
    [(FALLING, 0.9, False), (FALLING, 0.1, True), (FLAT, 0.9, True)],
    ids=["taught to", "from the start", "not learned"],
)
def test_attention_that_was_taught_to_look_one_key_up_is_not_saturated(
    losses: list[float], first: float, told: bool, make_run: MakeRun
) -> None:
    run = make_run(signs_of(losses, attention_entropy=[first, *[0.02] * (STEPS - 1)]))
    assert ("saturated-attention" in {f.id for f in run.findings()}) is told


@pytest.mark.parametrize(
    ("entries", "before", "steps", "level"),
    [(5, False, 16, "note"), (5, True, 16, "warning"), (60, False, 16, "warning"),
     (60, True, 2, None)],
)  # fmt: skip
def test_few_parameters_without_a_gradient_are_a_note_and_no_praise(
    entries: int, before: bool, steps: int, level: str | None, make_run: MakeRun
) -> None:
    told = CUT | {"entries": entries, "before": before, "steps": steps}
    found = {f.id: f for f in make_run(signs_of(FALLING, no_gradient=(1.0, told))).findings()}
    assert (found["no-gradient"].level if level else None) == level
    assert ("nothing-unusual" in found) is ("no-gradient" not in found) is (level is None)


@pytest.mark.parametrize(("of", "said"), [("softmax", "softmax is"), ("sigmoid", "sigmoid is")])
def test_what_is_applied_twice_is_named(of: str, said: str, make_run: MakeRun) -> None:
    found = make_run(signs_of(FALLING, probabilities=(1.0, {"of": of}))).findings()
    assert [f.id for f in found if f"{said} applied twice" in f.text] == ["softmax-twice"]


@pytest.mark.parametrize(
    ("hidden", "rests", "told"),
    [(0.95, 0.8, True), (0.95, 0.0, False), (0.5, 0.8, False)],
    ids=["saturated", "learned all the same", "outputs only"],
)
def test_a_run_that_rests_behind_saturated_layers_is_not_praised(
    hidden: float, rests: float, told: bool, make_run: MakeRun
) -> None:
    losses = [rests + (1 - rests / 2.3) * x for x in FALLING]
    facts = {"layer": "4", "hidden": hidden, "hidden_layer": "0"}
    found = make_run(signs_of(losses, saturated=(0.97, facts))).findings()
    ids = {f.id: f for f in found}
    assert ("vanishing-gradient" in ids) is told and ("nothing-unusual" in ids) is not told
    assert not told or (ids["vanishing-gradient"].level, ids["vanishing-gradient"].where) == (
        "note",
        "0",
    )


COSINES = [-0.9 - 0.1 * min(1.0, k / 6) for k in range(STEPS)]  # near the best from the start
NARROW = [0.5, *[0.01] * (STEPS - 1)]
WIDE = [0.5, *[0.6] * (STEPS - 1)]


@pytest.mark.parametrize(
    ("losses", "spread", "other", "told"),
    [
        (COSINES, NARROW, None, True),
        (FALLING, NARROW, None, True),
        (FALLING, NARROW, 0.5, True),
        (COSINES, WIDE, None, False),
        (FALLING, NARROW, 0.02, False),
        (FALLING, [0.05, *[0.01] * (STEPS - 1)], None, False),
        (GROWN, NARROW, None, False),
        (FLAT, NARROW, None, False),
    ],
    ids=["cosine", "distance", "of a teacher that varied", "lengths that vanish",
         "of a narrow teacher", "narrow from the start", "a loss that grows", "a bad loss"],
)  # fmt: skip
def test_outputs_that_are_divided_by_their_length_are_judged_by_directions(
    losses: list[float], spread: list[float], other: float | None, told: bool, make_run: MakeRun
) -> None:
    facts = {} if other is None else {"other": other}
    raw = WIDE if told else NARROW  # lengths, which do not count, say the opposite
    rows = signs_of(
        losses, constant_loss=None, direction_spread=(spread, facts), output_spread=(raw, {})
    )
    found = {f.id: f for f in make_run(rows).findings()}
    assert ("collapsed-representation" in found) is told
    if told:
        text, evidence = (
            getattr(found["collapsed-representation"], n) for n in ("text", "evidence")
        )
        assert "cosine of pairs 0.99" in text
        assert "vital/direction_spread" in {e.name for e in evidence}
        assert "nothing-unusual" not in found


def test_against_labels_directions_that_are_alike_are_no_collapse(make_run: MakeRun) -> None:
    rows = signs_of(FALLING, direction_spread=NARROW)
    assert "collapsed-representation" not in {f.id for f in make_run(rows).findings()}


@pytest.mark.parametrize(
    ("losses", "returns", "level"),
    [
        (FLAT, {k: 10 * (k - 1) for k in range(1, STEPS)}, "alarm"),
        (FALLING, {6: 20, 10: 60, 14: 100}, "warning"),
        (FALLING, {15: 0}, "note"),  # begun anew, once
        (FALLING, {6: 40, 10: 90}, "note"),  # back to a checkpoint, twice
        (FLAT, {14: 0}, "alarm"),  # seen once of many times
        (FLAT, {8: 40}, "note"),
    ],
    ids=["each step", "at times", "once", "briefly", "seen once", "briefly and once"],
)
def test_steps_that_are_undone_are_judged_by_how_many_they_are(
    losses: list[float], returns: dict[int, int], level: str, make_run: MakeRun
) -> None:
    """Steps that are measured begin at 10 k; `returns` says of a k at which step it was before."""
    back = [
        Record(step=10 * k, name="vital/written_back", value=10 * k - began,
               facts=Facts({"began": began, "times": 1}))
        for k, began in returns.items()
    ]  # fmt: skip
    found = make_run(signs_of(losses), back).findings()
    (told,) = [f for f in found if f.id == "weights-written-back"]
    lost = len({s for k, began in returns.items() for s in range(began, 10 * k)})
    share = round(100 * lost / (10 * STEPS - 9))
    assert (told.level, told.step) == (level, 10 * min(returns))
    assert f"{len(returns)} of {STEPS} measured steps" in told.text
    assert f"{share} % of the steps" in told.text
    warned = grave(make_run(signs_of(losses), back))
    assert (warned == [told]) if level != "note" else (told not in warned)
