"""Are the steps stable: sharpness against what the optimizer tolerates."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from eqtoolbox.record.facts import Facts
from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, trace
from eqtoolbox.report.words import number

EDGE = 0.9  # at the edge sharpness hovers around the threshold (Cohen et al. 2021, 2103.00065)
BEYOND = 1.2  # full-batch runs stay below this; beyond it steps overshoot for good
CHANGED = 1.5  # ratio from which sharpening is worth a sentence
STALE = 3  # unanswered attempts after which the last certified number is old news


def engine(run: Log) -> Iterator[Finding]:
    """How Hessian products were made, where it was not the exact default."""
    for probe in ("curvature", "noether", "discrete", "tracking", "spectrum"):
        name = f"{probe}/self_test/asymmetry"
        last = run.rows(name)[-1] if name in run else None
        if last is None:
            continue
        mode, reason = last.facts.text("mode"), last.facts.text("reason")
        if mode and mode != "exact":
            text = f"Hessian products are {mode}: {reason}."
            if last.hessian == "held":
                text = f"Curvature is not that of the gradient that trains: {reason}."
            test = trace(run, name)
            evidence = (test.latest(),) if test else ()
            yield Finding(level="note", text=text, evidence=evidence)


def stability(run: Log) -> Iterator[Finding]:
    """Where the run stands relative to the edge of stability; certified measurements only."""
    level_of = trace(run, "curvature/stability")
    if level_of is None:
        return
    certain = _with_certified_sharpness(run, level_of)
    if certain is None:
        return
    now, values = certain.now, certain.values.tolist()
    facts = certain.last.facts
    what = f"{_threshold_words(run, facts)} = {number(now)}"
    if (times := _times(facts)) != 1:
        what += f" (of gradients that the loop makes {number(times)} times as long)"
    level: Level = "good"
    dated, evidence = False, [certain.evidence()]
    if now >= BEYOND:
        level, when = "warning", certain.since([v >= BEYOND for v in values])
        dated = certain.once
        place = f"beyond the edge of stability {when}; steps overshoot along the top direction"
    elif now >= EDGE:
        level, when = "note", certain.since([v >= EDGE for v in values])
        dated = certain.once
        place = f"at the edge of stability {when}"
    else:
        rose = len(values) > 1 and certain.start > 0 and now / certain.start >= CHANGED
        rose = rose and certain.apart
        place = "below the edge of stability"
        place += f", up from {number(certain.start)} at the start" if rose else ""
        crossed = sum(v > 1 for v in values)
        if crossed:
            level, peak = "note", certain.records[int(np.argmax(certain.values))]
            dated = peak.step == certain.last.step
            evidence.append(Evidence(name=peak.name, step=peak.step, value=peak.value))
            place += f"; it was above 1 at {crossed} of {len(values)} measurements, at most "
            place += f"{number(peak.value)} at step {peak.step}"
    old = ""
    if certain.unanswered >= STALE:
        old = f" (last certified at step {certain.last.step}; {certain.unanswered} later "
        old += "attempts gave no number)"
    text, dated = f"{what}: {place}{old}.", dated or bool(old)
    yield Finding(level=level, text=text, evidence=tuple(evidence), dated=dated, id="beyond-edge")


def overshoot(run: Log) -> Iterator[Finding]:
    """Plain SGD steps that go beyond the minimum of the parabola along the gradient."""
    bend, rate = trace(run, "curvature/gradient_rayleigh"), trace(run, "training/learning_rate")
    if bend is None or rate is None or not _plain_sgd(run):
        return
    bears = trace(run, "curvature/stability")
    times = 1.0 if bears is None else _times(bears.last.facts)
    ratio = bend.now * times * rate.last.value / 2
    if ratio > 1:
        by = "" if times == 1 else f"{number(times)} × "
        text = f"A step along the gradient overshoots: {by}lr/2 × gᵀHg/gᵀg = {number(ratio)} > 1, "
        text += "the loss of its own batch rises to second order."
        evidence = (bend.evidence(), rate.latest())
        yield Finding(level="warning", text=text, evidence=evidence, id="beyond-edge")


def _with_certified_sharpness(run: Log, stability: Curve) -> Curve | None:
    """The stability records whose sharpness was certified, where it was recorded at all."""
    if "curvature/sharpness" not in run:
        return stability
    rows = run.rows("curvature/sharpness")
    uncertain = rows.steps[~rows.having("ok")]
    kept = stability.where(~np.isin(stability.steps, uncertain))
    if kept is None:
        return None
    attempts = np.union1d(run.rows(stability.name).steps, uncertain)
    attempts = np.setdiff1d(attempts, rows.steps[rows.having("skipped_budget")])
    return replace(kept, unanswered=int((attempts > kept.last.step).sum()))


def _times(facts: Facts) -> float:
    """How many times the loss's gradient the one is that the optimizer is given."""
    return facts.number("times") or 1.0


def _threshold_words(run: Log, facts: Facts) -> str:
    if _plain_sgd(run):
        return "Sharpness × lr/2"
    factor = facts.number("factor")
    if factor is not None:  # one number for all parameters: momentum, Nesterov
        return f"Sharpness × {factor:.3g} (of SGD with momentum)"
    if (run.info.get("optimizer") or {}).get("class") == "SGD":
        return "Sharpness × lr/(2 + 2·momentum)"
    return "Sharpness relative to the optimizer's stability threshold"


def _plain_sgd(run: Log) -> bool:
    optimizer = run.info.get("optimizer") or {}
    groups = optimizer.get("groups") or []
    plain = all(not group.get("momentum") for group in groups)
    return optimizer.get("class") == "SGD" and plain


def stability_panel(run: Log) -> Iterator[Panel]:
    """The sharpness relative to the optimizer's threshold."""
    level = trace(run, "curvature/stability")
    if level is None:
        return
    plot = Plot(last_step=run.last_step)
    plot.line(level, "stability", PALETTE[0])
    plot.missing(run, ["curvature/stability"])
    plot.level(1.0, "edge of stability")
    reading = (
        "Sharpness relative to what the optimizer tolerates at this learning rate: beyond 1, "
        "steps along the sharpest direction overshoot."
    )
    yield plot.panel("stability", "Stability", reading)


def decrease_panel(run: Log) -> Iterator[Panel]:
    """What one step does to the loss of its own batch, and what a parabola says."""
    plot = Plot(last_step=run.last_step, measure="decrease")
    for i, kind in enumerate(("actual", "predicted")):
        change = trace(run, f"curvature/{kind}_decrease")
        if change is not None:
            plot.line(change, kind, PALETTE[i], width=2.2 - 0.8 * i)
    if plot.data:
        reading = (
            "How much one step lowers the loss of its own batch, and what gradient and Hessian "
            "predict: where they part, the step is too long for a parabola."
        )
        yield plot.panel("decrease", "Decrease of the loss by one step", reading)


TOPIC = Topic(
    question="Are the steps stable?",
    slug="stability",
    explanation="Beyond the edge of stability steps along the sharpest direction overshoot; its "
    "charts stand beside the other curvatures.",
    remedy=(
        "lower the learning rate by 2 to 10",
        "warm it up over the first few per cent of the run",
    ),
    rules=(engine, stability, overshoot),
)
