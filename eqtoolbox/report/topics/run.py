"""Is the run what it seems: is the loss ours, is it finite, does every step count?"""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from eqtoolbox.record.record import Record
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.table import LARGEST
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import NO_PROBES, trace
from eqtoolbox.report.words import number, plural

FAITHFUL = 0.99  # gradient cosine below which the monitor itself warns about the replayed loss
LARGER = 1.05  # ratio of gradients from which the training one is no clipped one
MOST, MANY = 0.5, 0.05  # shares of skipped steps that are an alarm, and that are worth a warning
SKIPS = (
    "add an eps where the loss takes a root, a logarithm or a quotient: its slope is infinite at 0",
    "train in bfloat16, or keep the loss in float32, if half precision overflows",
    "call scaler.unscale_(optimizer) before clipping gradients",
)
FEW = 10  # skipped steps: by so many a gradient scaler divides its scale by a thousand


def closure(run: Log) -> Iterator[Finding]:
    """Whether the loss that the probes replay is the loss that is trained."""
    cosine = trace(run, "monitor/closure_grad_cos")
    if cosine is None:
        return
    low = min(cosine.records, key=lambda r: r.value)
    steps = cosine.steps
    checks = f"at step {steps[0]}, the only check"
    if len(steps) > 1:
        checks = f"at {len(steps)} checks from step {steps[0]} to {steps[-1]}"
    below = [r.value < FAITHFUL for r in cosine.records]
    if cosine.now < FAITHFUL:
        yield Finding(
            level="alarm",
            text=f"The replayed loss is not the training loss (gradient cosine "
            f"{number(cosine.now)}, expected 1, {cosine.since(below)}): curvature, Noether and "
            f"conservation numbers speak about another function. {_why_another(run)}",
            evidence=(cosine.evidence(),),
            id="another-loss",
        )
    elif any(below):
        yield Finding(
            level="warning",
            text=f"The replayed loss left the training loss at {sum(below)} of "
            f"{plural(len(below), 'check')} (lowest gradient cosine {number(low.value)} at step "
            f"{low.step}). {_why_another(run)}",
            evidence=(Evidence(name=low.name, step=low.step, value=low.value),),
            id="another-loss",
        )
    else:
        yield Finding(
            level="good",
            text=f"The replayed loss is the training loss (gradient cosine {cosine.now:.4f} "
            f"{checks}).",
            evidence=(cosine.evidence(),),
        )


def scale(run: Log) -> Iterator[Finding]:
    """Whether the gradient that trains is a multiple of the replayed one; clipped ones are less."""
    cosine, ratio = (trace(run, f"monitor/closure_grad_{n}") for n in ("cos", "ratio"))
    if ratio is None or cosine is None or cosine.now < FAITHFUL or ratio.now <= LARGER:
        return
    since = ratio.since([r.value > LARGER for r in ratio.records])
    text = f"The gradient that trains is {number(ratio.now)} times that of the replayed loss "
    text += f"({since}): curvature and losses are of another scale. {_why_another(run)}"
    yield Finding(level="warning", text=text, evidence=(ratio.evidence(),), id="another-scale")


def untrained(run: Log) -> Iterator[Finding]:
    """Trainable parameters that no attached optimizer holds."""
    for row in _newest(run, "monitor/parameters_untrained"):
        one = int(row.value) == 1
        text = f"{plural(int(row.value), 'trainable parameter')} {'is' if one else 'are'} in no "
        text += f"attached optimizer, which does not move {'it' if one else 'them'}: {_named(row)}."
        evidence = (Evidence(name=row.name, step=row.step, value=row.value),)
        yield Finding(
            level="warning",
            text=text,
            evidence=evidence,
            id="parameter-in-no-optimizer",
            remedy=(
                "give them to the optimizer: optimizer.add_param_group({'params': [...]})",
                "or freeze them, if that is meant: requires_grad_(False)",
            ),
        )


def _newest(run: Log, name: str) -> list[Record]:
    """The newest record of a count, in a list; none where it is no count."""
    rows = run.rows(name)[-1:] if name in run else ()
    return [row for row in rows if 1 <= row.value <= LARGEST]


def _named(row: Record) -> str:
    """The parameters that a row names, and how many more there are."""
    named = row.facts.texts("parameters")
    rest = int(row.value) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _why_another(run: Log) -> str:
    """The cause that the monitor named, or the usual ones."""
    ratio = trace(run, "monitor/closure_grad_ratio")
    causes = [r.facts.text("cause") for r in ratio.records] if ratio is not None else []
    causes = [cause for cause in causes if cause]
    if causes:
        return f"Likely cause: {causes[-1]}."
    return (
        "Usual causes: a regulariser or scaling outside the replayed loss, gradient accumulation, "
        "fresh dropout or augmentation, gradients averaged over processes or changed before the "
        "step."
    )


def nothing(run: Log) -> Iterator[Finding]:
    """A run in which no probe could measure anything, because no loss was known."""
    tried = {status for probe, status in run.attempts() if probe not in NO_PROBES}
    if tried != {"not_applicable"}:
        return
    rows = [r for r in run.rows() if r.probe not in NO_PROBES]
    if not any(r.facts.text("remedy") for r in rows):
        return
    reasons = Counter(r.facts.text("why") for r in rows).most_common()
    evidence = (Evidence(name=rows[-1].name, step=rows[-1].step, value=math.nan),)
    text = f"Nothing was measured: {reasons[0][0]}."
    yield Finding(level="warning", text=text, evidence=evidence)


def unseen(run: Log) -> Iterator[Finding]:
    """Losses that were evaluated while the attached optimizer took no step."""
    for row in _newest(run, "monitor/steps_unseen"):
        evidence = (Evidence(name=row.name, step=row.step, value=row.value),)
        text = f"{plural(int(row.value), 'loss evaluation')} passed without a step: "
        text += f"{row.facts.text('why')}."
        yield Finding(level="alarm", text=text, evidence=evidence)


def skipped_steps(run: Log) -> Iterator[Finding]:
    """Training steps that a gradient scaler skipped; a few are how it finds its scale."""
    rows = _newest(run, "training/skipped_steps")
    if not rows:
        return
    last, count = rows[-1], int(rows[-1].value)
    applied = run.records("training/applied") if "training/applied" in run else []
    taken = sum(r.value > 0 for r in applied)
    steps = max((r.step for r in applied if r.value > 0), default=-1) + 1
    still = len(applied) - taken  # due steps inside a fused optimizer that moved nothing
    share = max(count / (count + steps), still / max(len(applied), 1))
    evidence = (Evidence(name=last.name, step=last.step, value=last.value),)
    what = f"{count} training " + ("step was" if count == 1 else "steps were")
    if not taken:
        what = f"No training step was applied: all {count} were"
    level: Level = "alarm" if share >= MOST else "warning" if share >= MANY else "note"
    if taken and count < FEW:
        level = "note"
    usual = "" if level != "note" else "; a few are how a gradient scaler finds its scale"
    text = f"{what} skipped ({_culprit(last)}){usual}."
    remedy = SKIPS if level != "note" else ()
    yield Finding(level=level, text=text, evidence=evidence, id="scaler-skips-steps", remedy=remedy)


def _culprit(row: Record) -> str:
    """Why a step was skipped, in words."""
    culprit = row.facts.text("culprit")
    return f"the gradient of {culprit} was not finite" if culprit else row.facts.text("why")


def finite_loss(run: Log) -> Iterator[Finding]:
    """NaN and infinite training losses."""
    if "training/loss" not in run:
        return
    rows = run.rows("training/loss")
    finite, ok = np.abs(rows.numbers("value")) <= LARGEST, rows.having("ok")
    good = np.flatnonzero(ok & finite)
    bad = np.flatnonzero((ok | rows.having("non_finite")) & ~finite)
    if not bad.size:
        return
    lasting = not good.size or good[-1] < bad[-1]
    first = bad[bad > good[-1]][0] if lasting and good.size else bad[0]
    begin, before = rows[first], rows.where(good[good < first])
    kind = "NaN" if math.isnan(begin.value) else "infinite"
    last = f"; the last finite one was {number(before[-1].value)}" if before else ""
    once = f"The training loss was not finite at {plural(len(bad), 'recorded step')}, first at step"
    yield Finding(
        level="alarm" if lasting else "warning",
        text=f"The training loss is {kind} since step {begin.step}{last}."
        if lasting
        else f"{once} {begin.step}{last}; it recovered.",
        evidence=tuple(
            Evidence(name=r.name, step=r.step, value=r.value) for r in [*before[-1:], begin]
        ),
        id="loss-not-finite",
        step=begin.step,
    )


TOPIC = Topic(
    question="Is the run what it seems?",
    slug="run",
    explanation="Numbers speak about the training only if the loss that is replayed is the one "
    "that is trained, its gradient arrives, and its steps are taken.",
    remedy=(
        "put the whole loss, regularisers included, into the function that monitor.loss decorates",
        "compare one step by hand: loss, gradient and parameters before and after it",
    ),
    rules=(closure, scale, untrained, nothing, unseen, skipped_steps, finite_loss),
)
