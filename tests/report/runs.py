"""Synthetic run directories: single series for the rules, one rich run for page and summary."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eqtoolbox.record.facts import Facts
from eqtoolbox.record.record import Record, Verdict
from eqtoolbox.report import Run, Topic
from eqtoolbox.report.figures import Panel
from eqtoolbox.report.old_notes import facts_in

INFO: dict[str, Any] = {
    "format": 1,
    "eqtoolbox": "0.1.0",
    "torch": "2.13.0",
    "python": "3.12.4",
    "platform": "Linux",
    "started": 1_790_000_000.0,
    "finished": 1_790_000_754.0,
    "segments": 1,
    "model": {"class": "ConvNet", "parameters": 61_706, "trainable": 61_706},
    "optimizer": {
        "class": "SGD",
        "groups": [{"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.0}],
    },
    "budget": 0.05,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "probes": {"equivariance": {"schedule": "every(10)"}, "curvature": {"schedule": "every(10)"}},
}

SYMMETRIES = [
    {"name": "conv1-conv2", "family": "rescale", "dimension": 16, "status": "verified",
     "residual": 3e-8},
    {"name": "conv1-norm1", "family": "scale", "dimension": 8, "status": "approximate",
     "residual": 2e-5},
    {"name": "head", "family": "translation", "dimension": 64, "status": "verified",
     "residual": 1e-8},
    {"name": "conv2-gelu", "family": "rescale", "dimension": 16, "status": "broken",
     "residual": 0.41},
]  # fmt: skip


PANELS = {  # of the rich run's page
    "loss", "equivariance-relative_error", "equivariance-orbit_variance",
    "equivariance-percent_of_loss", "conservation-drift", "causes-rescale", "causes-scale",
    "noether-first_order", "noether-second_order", "eigenvalues", "stability", "overlaps",
    "rayleigh", "seconds", "overhead",
}  # fmt: skip
UNCERTAIN = 987.5  # what records that did not converge carry; it must never be shown
STALE = 765.25  # what the killed segment wrote for steps that the resumed one repeats
TAIL = '{"step": 1000, "na'  # what the kill left of the last line


def write_run(
    home: Path,
    records: Iterable[Record],
    *,
    events: Iterable[dict[str, Any]] = (),
    tail: str = "",
    **info: Any,
) -> Path:
    """A run directory holding these records; `tail` is what a kill left of the last line."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(r.to_json(), allow_nan=False) + "\n" for r in records]
    (home / "records.jsonl").write_text("".join(lines) + tail)
    (home / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (home / "run.json").write_text(json.dumps({**INFO, **info}))
    return home


def series(name: str, values: Iterable[float], *, every: int = 10, **fields: Any) -> list[Record]:
    """One record a value, at steps 0, every, 2 every, ...; `fields` are the same in all."""
    return [Record(step=i * every, name=name, value=v, **fields) for i, v in enumerate(values)]


def with_facts(row: Record) -> Record:
    """The record as format 2 has it: what its note tells as facts, and a note without them."""
    told = Facts(facts_in(row.name, row.status, row.note)) if row.note else row.facts
    return replace(row, facts=told, note="told anew")


def missing(name: str, steps: Iterable[int], status: Any, note: str = "") -> list[Record]:
    """Records of a probe that gave no number at these steps."""
    nan = float("nan")
    return [Record(step=s, name=name, value=nan, status=status, note=note) for s in steps]


EVENTS = [
    {"time": 1_790_000_000.0, "step": 0, "kind": "info", "probe": "monitor",
     "message": "attached; Hessian products by the retained graph (exact)"},
    {"time": 1_790_000_310.0, "step": 410, "kind": "warning", "probe": "noether",
     "message": "RuntimeError: derivative for aten::_foo is not implemented <b>here</b>"},
    {"time": 1_790_000_455.0, "step": 600, "kind": "info", "probe": "monitor",
     "message": "resumed as segment 1"},
]  # fmt: skip


def rich_records() -> list[Record]:
    """What a monitor with every probe writes, in the order of the steps."""
    rng = np.random.default_rng(0)
    rows: list[Record] = []
    for step in range(1000):
        rows += _training(step, rng)
        if step % 10 == 0:
            segment = int(step >= 600)
            due = _equivariance(step, rng) + _noether(step, rng) + _conservation(step)
            due += _curvature(step, rng) + _cost(step)
            rows += [Record(**{**vars(r), "segment": segment}) for r in due]
        if step == 640:  # the resumed run starts again from the checkpoint of step 600
            stale = [r for r in rows if r.step >= 600]
            rows = [r for r in rows if r.step < 600]
            rows += [Record(**{**vars(r), "value": STALE, "segment": 0}) for r in stale]
            rows += stale
    return rows


def _training(step: int, rng: np.random.Generator) -> list[Record]:
    loss = 0.18 + 2.1 * np.exp(-step / 120) + 0.05 * rng.standard_normal() * np.exp(-step / 800)
    yields = [Record(step=step, name="training/loss", value=float(max(loss, 0.02)))]
    return [*yields, Record(step=step, name="training/learning_rate", value=0.05)]


def _equivariance(step: int, rng: np.random.Generator) -> list[Record]:
    name, t = "equivariance", step / 1000

    def wobble() -> float:
        return float(np.exp(0.06 * rng.standard_normal()))

    floor = 2.1e-7 * wobble()
    c4 = (0.07 + 0.36 * (1 - np.exp(-4 * t))) * wobble()
    rows = [
        Record(step=step, name=f"{name}/relative_error/cyclic4", value=c4, stderr=0.05 * c4,
               floor=floor, verdict="violated", mode="eval"),
        Record(step=step, name=f"{name}/relative_error/flip", value=1.3e-7 * wobble(),
               floor=floor, verdict="holds", mode="eval"),
        Record(step=step, name=f"{name}/relative_error/translation",
               value=(1.1e-6 + 4e-7 * t) * wobble(), floor=floor, verdict="unresolved"),
        Record(step=step, name=f"{name}/worst/cyclic4", value=1.8 * c4, floor=floor,
               verdict="violated", note="element 3"),
    ]  # fmt: skip
    for target, scale in (("cyclic4", 0.3), ("flip", 1e-9), ("translation", 2e-6)):
        value = scale * (0.15 + 0.85 * t) * wobble()
        rows.append(Record(step=step, name=f"{name}/orbit_variance/{target}", value=value))
    for target, scale in (("cyclic4", 12.0), ("flip", 1e-11), ("translation", 1e-9)):
        value = scale * (1 - 0.8 * np.exp(-5 * t)) * wobble()
        rows.append(Record(step=step, name=f"{name}/percent_of_loss/{target}", value=value,
                           stderr=0.1 * value, unit="%"))  # fmt: skip
    if step == 0:
        note = "inputs of shape (64,) carry no rotation"
        rows += missing(f"{name}/relative_error/so2", [0], "not_applicable", note)
    return rows


def _noether(step: int, rng: np.random.Generator) -> list[Record]:
    if step in (410, 420):
        note = "RuntimeError: derivative for aten::_foo is not implemented"
        return missing("noether/second_order", [step], "failed", note)
    rows = []
    fade = 0.2 + 2 * np.exp(-step / 150)
    for family, curve, second, floor in (
        ("rescale", -0.31, 2e-4, 1e-3), ("scale", -0.12, 6e-4, 1e-3), ("translation", 0, 3e-8, 1e-3)
    ):  # fmt: skip
        scatter = np.exp(0.3 * rng.standard_normal(2))
        rows += [
            Record(step=step, name=f"noether/first_order/{family}", value=3e-8 * scatter[0],
                   floor=1e-7, verdict="holds", mode="train"),
            Record(step=step, name=f"noether/second_order/{family}", value=second * scatter[1],
                   floor=floor, verdict="holds", mode="train", matvecs=1),
            Record(step=step, name=f"noether/rayleigh/{family}", value=curve * fade, floor=1e-6,
                   mode="train"),
            Record(step=step, name=f"noether/predicted_rayleigh/{family}",
                   value=curve * fade * (1 + 1e-4 * scatter[0]), floor=1e-6, mode="train"),
        ]  # fmt: skip
    return rows


def _conservation(step: int) -> list[Record]:
    rows, t = [], step / 1000
    mixes = {
        "rescale": (0.031, {"decay": 0.84 + 0.08 * t, "finite_step": 0.16 - 0.08 * t}),
        "scale": (0.24, {"decay": 0.3 - 0.2 * t, "finite_step": 0.62 + 0.2 * t,
                         "unmeasured": 0.08}),
        "translation": (4e-8, {"finite_step": 1.0}),
    }  # fmt: skip
    for family, (reach, mix) in mixes.items():
        drift, floor = reach * (1 - np.exp(-2 * t)), 1e-7
        verdict: Verdict = "holds" if drift < 3 * floor else "violated"
        shares = {c: mix.get(c, 0.0) for c in ("symmetry", "decay", "optimizer", "finite_step")}
        pace = reach * 2e-3 * np.exp(-2 * t)
        rows += [
            Record(step=step, name=f"conservation/drift/{family}", value=drift, floor=floor,
                   verdict=verdict),
            Record(step=step, name=f"conservation/step_drift/{family}", value=pace),
            Record(step=step, name=f"conservation/worst_drift/{family}", value=7 * drift,
                   note="conv1.weight[5]"),
            Record(step=step, name=f"conservation/closure/{family}", value=2e-8, floor=1e-7,
                   verdict="holds"),
        ]  # fmt: skip
        for cause, share in shares.items():
            rows.append(
                Record(step=step, name=f"conservation/{cause}/{family}", value=share * pace)
            )
        if step:
            shares["unmeasured"] = mix.get("unmeasured", 0.0)
            for cause, share in shares.items():
                name = f"conservation/share_{cause}/{family}"
                rows.append(Record(step=step, name=name, value=share))
    return rows


def _curvature(step: int, rng: np.random.Generator) -> list[Record]:
    name = "curvature"
    if step % 70 == 30:
        return missing(f"{name}/sharpness", [step], "skipped_budget", "budget of 5 % spent")
    edge, rise = 40.0, 1 - np.exp(-step / 130)
    sharp = edge * (0.16 + 0.86 * rise) * (1 + 0.025 * rng.standard_normal() * rise)
    rows = [
        Record(step=step, name=f"{name}/eigenvalue/{k}", value=sharp * 0.72 ** (k - 1),
               stderr=sharp * 2e-3 * k * k, matvecs=18 if k == 1 else None)
        for k in range(1, 6)
    ]  # fmt: skip
    overlap = 0.35 + 0.43 * rise + 0.05 * rng.standard_normal()
    rows += [
        Record(step=step, name=f"{name}/smallest", value=-sharp * (0.3 - 0.18 * rise), stderr=0.2),
        Record(step=step, name=f"{name}/gradient_overlap", value=overlap, stderr=0.02),
        Record(step=step, name=f"{name}/update_overlap", value=overlap - 0.04, stderr=0.02),
        Record(step=step, name=f"{name}/gradient_rayleigh", value=0.55 * sharp),
    ]
    if step in (120, 550, 830):
        note = "Ritz residual 0.08 above tolerance 0.01 after 40 products"
        rows = [r for r in rows if "/eigenvalue/" not in r.name or not r.name.endswith("/1")]
        lost = [f"{name}/sharpness", f"{name}/stability", f"{name}/eigenvalue/1"]
        return rows + [
            Record(step=step, name=n, value=UNCERTAIN, status="not_converged", note=note)
            for n in lost
        ]
    error = sharp * 2e-3
    return [
        *rows,
        Record(step=step, name=f"{name}/sharpness", value=sharp, stderr=error, matvecs=18),
        Record(step=step, name=f"{name}/stability", value=sharp / edge, stderr=error / edge),
    ]


def _cost(step: int) -> list[Record]:
    seconds = {"equivariance": 0.021, "noether": 0.034, "conservation": 0.004, "curvature": 0.19}
    rows = [Record(step=step, name=f"cost/seconds/{p}", value=s, unit="s")
            for p, s in seconds.items()]  # fmt: skip
    rows += [Record(step=step, name="cost/matvecs/noether", value=3),
             Record(step=step, name="cost/matvecs/curvature", value=18)]  # fmt: skip
    if step in (0, 500):
        rows.append(Record(step=step, name="monitor/closure_grad_cos", value=0.99999994))
    overhead = 0.049 + 0.03 * np.exp(-step / 60)
    return [*rows, Record(step=step, name="cost/overhead", value=float(overhead))]


def shown(topic: Topic, run: Run) -> list[Panel]:
    """All figures of a topic."""
    return [panel for chart in topic.panels for panel in chart(run)]
