"""Rules about curvature: stability, sharpening, negative directions, alignment."""

from collections.abc import Iterator

from eqtoolbox.report.finding import Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import Trace, trace, traces
from eqtoolbox.report.words import number, percent

EDGE = 0.9  # at the edge sharpness hovers around the threshold (Cohen et al. 2021, 2103.00065)
BEYOND = 1.2  # full-batch runs stay below this; beyond it steps overshoot for good
CHANGED = 1.5  # ratio from which sharpening is worth a sentence
LIVES_IN = 0.5  # share of the energy from which a vector is said to live in a subspace
SCALED = 10.0  # ratio of plain to orbit-free sharpness from which scale explains the plain one
STALE = 3  # unanswered attempts after which the last certified number is old news


def stability(run: Log) -> Iterator[Finding]:
    """Where the run stands relative to the edge of stability; certified measurements only."""
    level_of = trace(run, "curvature/stability")
    if level_of is None:
        return
    certain = _with_certified_sharpness(run, level_of)
    if certain is None:
        return
    now, values = certain.now, certain.values.tolist()
    what = f"{_threshold_words(run, certain.last.note)} = {number(now)}"
    level: Level = "good"
    if now >= BEYOND:
        level, when = "warning", certain.since([v >= BEYOND for v in values])
        place = f"beyond the edge of stability {when}; steps overshoot along the top direction"
    elif now >= EDGE:
        level, when = "note", certain.since([v >= EDGE for v in values])
        place = f"at the edge of stability {when}"
    else:
        rose = len(values) > 1 and certain.start > 0 and now / certain.start >= CHANGED
        place = "below the edge of stability"
        place += f", up from {number(certain.start)} at the start" if rose else ""
        crossed = sum(v > 1 for v in values)
        if crossed:
            level, peak = "note", max(certain.records, key=lambda r: r.value)
            place += f"; it was above 1 at {crossed} of {len(values)} measurements, at most "
            place += f"{number(peak.value)} at step {peak.step}"
    old = ""
    if certain.unanswered >= STALE:
        old = f" (last certified at step {certain.last.step}; {certain.unanswered} later "
        old += "attempts gave no number)"
    yield Finding(level=level, text=f"{what}: {place}{old}.", evidence=(certain.evidence(),))


def sharpening(run: Log) -> Iterator[Finding]:
    """How the sharpness moved over the run."""
    top = trace(run, "curvature/sharpness")
    if top is None or len(top.records) < 6 or top.start <= 0 or top.now <= 0:
        return
    ratio = top.now / top.start
    if 1 / CHANGED < ratio < CHANGED:
        return
    moved = f"rose {ratio:.2g}x" if ratio > 1 else f"fell {1 / ratio:.2g}x"
    text = f"The sharpness {moved}, from {number(top.start)} to {number(top.now)}."
    yield Finding(level="note", text=text, evidence=(top.evidence(),))


def orbit_free(run: Log) -> Iterator[Finding]:
    """The sharpness that no motion along the symmetry orbits changes, beside the plain one."""
    free, plain = trace(run, "curvature/orbit_free_sharpness"), trace(run, "curvature/sharpness")
    if free is None or plain is None:
        return
    text = f"Across the symmetry orbits the sharpness is {number(free.now)}"
    text += f" (plain {number(plain.now)})"
    if free.now > 0 and plain.now > SCALED * free.now:
        text += ": most of the plain sharpness is a matter of scale, which changes no prediction"
    yield Finding(level="note", text=f"{text}.", evidence=(free.evidence(), plain.evidence()))


def negative_curvature(run: Log) -> Iterator[Finding]:
    """The most negative curvature, when it is resolved."""
    bottom = trace(run, "curvature/smallest")
    if bottom is None:
        return
    top, evidence = trace(run, "curvature/sharpness"), [bottom.evidence()]
    if bottom.now >= 0 or abs(bottom.now) <= bottom.error:
        error = f" (error {number(bottom.error)})" if bottom.error else ""
        text = (
            f"No negative curvature is resolved: smallest eigenvalue {number(bottom.now)}{error}."
        )
        yield Finding(level="note", text=text, evidence=tuple(evidence))
        return
    share = ""
    if top is not None and top.now > 0:
        share = f", {percent(-bottom.now / top.now)} of the sharpness"
        evidence.append(top.evidence())
    text = f"The most negative curvature is {number(bottom.now)}{share}: "
    text += "the loss bends downwards in at least one direction."
    yield Finding(level="note", text=text, evidence=tuple(evidence))


def alignment(run: Log) -> Iterator[Finding]:
    """How much of the gradient and of the update lies in the top curvature directions."""
    gradient = trace(run, "curvature/gradient_overlap")
    update = trace(run, "curvature/update_overlap")
    count = len(traces(run, "curvature/eigenvalue"))
    space = f"the top-{count} curvature directions" if count else "the top curvature directions"
    for subject, t in (("gradient", gradient), ("update", update)):
        if t is None:
            continue
        share = f"{percent(t.now)} of its energy"
        chance = _chance(run, count)
        if t.now >= LIVES_IN:
            text = f"The {subject} lives in {space}: {share}{chance}."
        else:
            text = f"The {subject} has {share} in {space}{chance}."
        yield Finding(level="note", text=text, evidence=(t.evidence(),))


def engine(run: Log) -> Iterator[Finding]:
    """How Hessian products were made, where it was not the exact default."""
    for probe in ("curvature", "noether", "discrete", "tracking", "spectrum"):
        name = f"{probe}/self_test/asymmetry"
        mode, _, reason = (run.rows(name)[-1].note if name in run else "").partition(": ")
        if mode and mode != "exact":
            text = f"Hessian products are {mode}: {reason}."
            if run.rows(name)[-1].hessian == "held":
                text = f"Curvature is not that of the gradient that trains: {reason}."
            test = trace(run, name)
            evidence = (test.latest(),) if test else ()
            yield Finding(level="note", text=text, evidence=evidence)


def overshoot(run: Log) -> Iterator[Finding]:
    """Plain SGD steps that go beyond the minimum of the parabola along the gradient."""
    bend, rate = trace(run, "curvature/gradient_rayleigh"), trace(run, "training/learning_rate")
    if bend is None or rate is None or not _plain_sgd(run):
        return
    ratio = bend.now * rate.last.value / 2
    if ratio > 1:
        text = f"A step along the gradient overshoots: lr/2 × gᵀHg/gᵀg = {number(ratio)} > 1, "
        text += "the loss of its own batch rises to second order."
        evidence = (bend.evidence(), rate.latest())
        yield Finding(level="warning", text=text, evidence=evidence)


def _with_certified_sharpness(run: Log, stability: Trace) -> Trace | None:
    """The stability records whose sharpness was certified, where it was recorded at all."""
    if "curvature/sharpness" not in run:
        return stability
    rows = run.records("curvature/sharpness")
    uncertain = {r.step for r in rows if r.status != "ok"}
    skipped = {r.step for r in rows if r.status == "skipped_budget"}  # no attempts
    kept = tuple(r for r in stability.records if r.step not in uncertain)
    if not kept:
        return None
    steps = ({r.step for r in run.records(stability.name)} | uncertain) - skipped
    return Trace(records=kept, unanswered=sum(step > kept[-1].step for step in steps))


def _threshold_words(run: Log, note: str) -> str:
    if _plain_sgd(run):
        return "Sharpness × lr/2"
    if note.startswith("sharpness * "):  # one number for all parameters: momentum, Nesterov
        return f"Sharpness × {note.removeprefix('sharpness * ')} (of SGD with momentum)"
    if (run.info.get("optimizer") or {}).get("class") == "SGD":
        return "Sharpness × lr/(2 + 2·momentum)"
    return "Sharpness relative to the optimizer's stability threshold"


def _plain_sgd(run: Log) -> bool:
    optimizer = run.info.get("optimizer") or {}
    groups = optimizer.get("groups") or []
    plain = all(not group.get("momentum") for group in groups)
    return optimizer.get("class") == "SGD" and plain


def _chance(run: Log, count: int) -> str:
    """The energy that a random vector would have there, in words."""
    dimension = (run.info.get("model") or {}).get("trainable")
    if not count or not dimension or count >= dimension:
        return ""
    return f" (a random vector has {percent(count / dimension)})"
