"""Rules about the run as a whole: is the loss ours, is it finite, does it fall, what was missed."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.run import Run
from eqtoolbox.report.table import LARGEST
from eqtoolbox.report.trace import skipped, trace
from eqtoolbox.report.words import listing, number, percent, plural

FAITHFUL = 0.99  # gradient cosine below which the monitor itself warns about the replayed loss
LARGER = 1.05  # ratio of gradients from which the training one is no clipped one
FIFTH = 5  # the loss is compared between fifths of the run
STANDARD_ERRORS = 3.0  # beyond this a difference of medians is no accident of the batches
MOST, MANY = 0.5, 0.05  # shares of skipped steps that are an alarm, and that are worth a warning
FEW = 10  # skipped steps: by so many a gradient scaler divides its scale by a thousand
_NO_PROBES = ("training", "monitor", "cost")
ELSEWHERE = ("training/loss", "discrete/dead")  # what other rules tell of
LIGHT = 0.1  # overhead that needs no remark when no budget was set
OVERDRAWN = 1.2  # times the budget: the token bucket may overshoot by one probe


def closure(run: Run) -> Iterator[Finding]:
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
        )
    elif any(below):
        yield Finding(
            level="warning",
            text=f"The replayed loss left the training loss at {sum(below)} of "
            f"{plural(len(below), 'check')} (lowest gradient cosine {number(low.value)} at step "
            f"{low.step}). {_why_another(run)}",
            evidence=(Evidence(name=low.name, step=low.step, value=low.value),),
        )
    else:
        yield Finding(
            level="good",
            text=f"The replayed loss is the training loss (gradient cosine {cosine.now:.4f} "
            f"{checks}).",
            evidence=(cosine.evidence(),),
        )


def scale(run: Run) -> Iterator[Finding]:
    """Whether the gradient that trains is a multiple of the replayed one; clipped ones are less."""
    cosine, ratio = (trace(run, f"monitor/closure_grad_{n}") for n in ("cos", "ratio"))
    if ratio is None or cosine is None or cosine.now < FAITHFUL or ratio.now <= LARGER:
        return
    since = ratio.since([r.value > LARGER for r in ratio.records])
    text = f"The gradient that trains is {number(ratio.now)} times that of the replayed loss "
    text += f"({since}): curvature and losses are of another scale. {_why_another(run)}"
    yield Finding(level="warning", text=text, evidence=(ratio.evidence(),))


def untrained(run: Run) -> Iterator[Finding]:
    """Trainable parameters that no attached optimizer holds."""
    name = "monitor/parameters_untrained"
    rows = run.records(name) if name in run else []
    for row in rows[-1:]:
        one = int(row.value) == 1
        text = f"{plural(int(row.value), 'trainable parameter')} {'is' if one else 'are'} in no "
        text += f"attached optimizer, which does not move {'it' if one else 'them'}: {row.note}."
        evidence = (Evidence(name=row.name, step=row.step, value=row.value),)
        yield Finding(level="warning", text=text, evidence=evidence)


def _why_another(run: Run) -> str:
    """The cause that the monitor named, or the usual ones."""
    ratio = trace(run, "monitor/closure_grad_ratio")
    causes = [r.note for r in ratio.records if r.note] if ratio is not None else []
    if causes:
        return f"Likely cause: {causes[-1]}."
    return (
        "Usual causes: a regulariser or scaling outside the replayed loss, gradient accumulation, "
        "fresh dropout or augmentation, gradients averaged over processes or changed before the "
        "step."
    )


def unseen(run: Run) -> Iterator[Finding]:
    """Losses that were evaluated while the attached optimizer took no step."""
    rows = run.records("monitor/steps_unseen") if "monitor/steps_unseen" in run else []
    for row in rows[-1:]:
        evidence = (Evidence(name=row.name, step=row.step, value=row.value),)
        text = f"{plural(int(row.value), 'loss evaluation')} passed without a step: {row.note}."
        yield Finding(level="alarm", text=text, evidence=evidence)


def skipped_steps(run: Run) -> Iterator[Finding]:
    """Training steps that a gradient scaler skipped; a few are how it finds its scale."""
    rows = run.records("training/skipped_steps") if "training/skipped_steps" in run else []
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
    text = f"{what} skipped ({last.note}){usual}."
    yield Finding(level=level, text=text, evidence=evidence)


def finite_loss(run: Run) -> Iterator[Finding]:
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
    )


def loss_trend(run: Run) -> Iterator[Finding]:
    """How the training loss moved between fifths of the run."""
    loss = trace(run, "training/loss")
    if loss is None or loss.unanswered or len(loss.records) < 3 * FIFTH:
        return
    values = loss.values
    ratios = np.log(values) if (values > 0).all() else values  # a steep fall is no scatter
    fifths, compared = np.array_split(values, FIFTH), np.array_split(ratios, FIFTH)
    first, previous, last = (float(np.median(fifths[i])) for i in (0, -2, -1))
    start, before, end = (float(np.median(compared[i])) for i in (0, -2, -1))
    steps = [loss.records[len(fifths[0]) - 1].step, loss.last.step]
    evidence = tuple(
        Evidence(name=loss.name, step=step, value=value, points=len(part))
        for step, value, part in zip(steps, (first, last), (fifths[0], fifths[-1]), strict=True)
    )
    moved = f"from {number(first)} in the first fifth of the run to {number(last)} in the last"
    if end - before > _uncertainty(compared[-2], compared[-1]):
        rising = f"from {number(previous)} to {number(last)} between the last two fifths"
        text = f"The training loss is rising: {rising} of the run."
        yield Finding(level="warning", text=text, evidence=evidence)
    elif start - end > _uncertainty(compared[0], compared[-1]):
        falls = before - end > _uncertainty(compared[-2], compared[-1])
        tail = ", and is still falling" if falls else "; no further fall shows in the last fifth"
        text = f"The training loss fell {moved}{tail}."
        yield Finding(level="good", text=text, evidence=evidence)
    else:
        text = f"The training loss shows no fall beyond its own scatter ({moved})."
        yield Finding(level="note", text=text, evidence=evidence)


def _uncertainty(*parts: np.ndarray) -> float:
    """Three standard errors of a difference of medians, from the scatter inside each part."""
    squares = 0.0
    for part in parts:
        scatter = 1.4826 * float(np.median(np.abs(part - np.median(part))))  # normal: MAD to sd
        squares += (1.2533 * scatter) ** 2 / len(part)
    return STANDARD_ERRORS * math.sqrt(squares)


def nothing(run: Run) -> Iterator[Finding]:
    """A run in which no probe could measure anything, because no loss was known."""
    tried = {status for probe, status in run.attempts() if probe not in _NO_PROBES}
    if tried != {"not_applicable"}:
        return
    rows = [r for r in run.rows() if r.probe not in _NO_PROBES]
    if not any("monitor.loss" in r.note or "callback.loss" in r.note for r in rows):
        return
    reasons = Counter(r.note for r in rows).most_common()
    evidence = (Evidence(name=rows[-1].name, step=rows[-1].step, value=math.nan),)
    text = f"Nothing was measured: {reasons[0][0]}."
    yield Finding(level="warning", text=text, evidence=evidence)


def unanswered(run: Run) -> Iterator[Finding]:
    """Measurements that gave no number, by reason."""
    words = {"failed": "failed", "non_finite": "met NaN or infinite numbers"}
    words["not_converged"] = "did not converge and count as unmeasured"
    for status, happened in words.items():
        first, note, seen = None, "", set[tuple[int, str]]()
        everything = run.rows()
        for r in everything.where(everything.having(status)):
            if not r.name.startswith(ELSEWHERE) and (r.step, r.probe) not in seen:
                seen.add((r.step, r.probe))
                first, note = first or r, note or r.note
        if first is None:
            continue
        probes = Counter(probe for _, probe in sorted(seen)).most_common()
        what = listing([f"{count} {probe}" for probe, count in probes])
        what += " measurement" if len(seen) == 1 else " measurements"
        because = f": {note}" if note else ""
        yield Finding(
            level="note" if status == "not_converged" else "warning",
            text=f"{what} {happened}, first at step {first.step}{because}.".replace("..", "."),
            evidence=(Evidence(name=first.name, step=first.step, value=math.nan),),
        )


def cost(run: Run) -> Iterator[Finding]:
    """What share of the training time the probes took, and what the budget left out."""
    overhead, budget = trace(run, "cost/overhead"), run.info.get("budget")
    left_out, setup = sum(skipped(run).values()), trace(run, "cost/setup")
    due = left_out + sum(n for probe, n in run.tried().items() if probe not in _NO_PROBES)
    took = f"overhead {_share(overhead.last.value)}" if overhead else "overhead not recorded"
    if overhead and budget is not None:
        took += f", budget {percent(budget)}"
    once = f", set-up of {number(setup.last.value, 2)} s apart" if setup else ""
    evidence = tuple(t.latest() for t in (overhead, setup) if t is not None)
    if overhead and budget is not None and overhead.last.value > OVERDRAWN * budget:
        text = f"Probes overdrew their budget ({took}{once}): a run that takes longer than the one "
        text += "before overdraws it, and weighs less the longer the training."
        yield Finding(level="note", text=text, evidence=evidence)
    elif overhead and not left_out:
        share = _share(overhead.last.value) + (" of" if overhead.last.value < 2 else "")
        limit = "no budget was set" if budget is None else f"budget {percent(budget)}"
        text = f"Probes cost {share} the training time ({limit}){once}; no measurement was skipped."
        level: Level = "good" if budget is not None or overhead.last.value <= LIGHT else "note"
        yield Finding(level=level, text=text, evidence=evidence)
    if left_out:
        text = f"{left_out} of {plural(due, 'due measurement')} were skipped by the budget"
        yield Finding(level="note", text=f"{text} ({took}{once}).", evidence=evidence)


def incidents(run: Run) -> Iterator[Finding]:
    """Errors in the event log and lines that a kill tore."""
    errors = [e for e in run.events if e.get("kind") == "error"]
    if errors:
        first = errors[0]
        where = f"step {first.get('step')}, {first.get('probe') or 'monitor'}"
        text = f"{plural(len(errors), 'error')} in the event log; first ({where}): "
        yield Finding(level="warning", text=text + str(first.get("message", "")).split("\n")[0])
    if run.torn:
        text = f"{plural(run.torn, 'line')} of the log could not be read and"
        was = "was" if run.torn == 1 else "were"
        yield Finding(
            level="note", text=f"{text} {was} left out (torn by a kill, or being written)."
        )


def _share(overhead: float) -> str:
    return percent(overhead) if overhead < 2 else f"{number(overhead, 2)}x"
