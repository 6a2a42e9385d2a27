"""Where does curvature point: sharpening, negative directions, alignment."""

from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.report.drawing import PALETTE, faded
from eqtoolbox.report.figures import Key, Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.prediction import rayleigh_panel
from eqtoolbox.report.topics.spectrum import spectrum_panels
from eqtoolbox.report.topics.stability import CHANGED, decrease_panel, stability_panel
from eqtoolbox.report.trace import trace, traces
from eqtoolbox.report.words import number, percent, words

LIVES_IN = 0.5  # share of the energy from which a vector is said to live in a subspace
SCALED = 10.0  # ratio of plain to orbit-free sharpness from which scale explains the plain one
TOP = "curvature/sharpness"


def sharpening(run: Log) -> Iterator[Finding]:
    """How the sharpness moved over the run."""
    top = trace(run, "curvature/sharpness")
    if top is None or len(top.records) < 6 or top.start <= 0 or top.now <= 0:
        return
    ratio = top.now / top.start
    if 1 / CHANGED < ratio < CHANGED or not top.apart:
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


def _chance(run: Log, count: int) -> str:
    """The energy that a random vector would have there, in words."""
    dimension = (run.info.get("model") or {}).get("trainable")
    if not count or not dimension or count >= dimension:
        return ""
    return f" (a random vector has {percent(count / dimension)})"


def eigenvalue_panel(run: Log) -> Iterator[Panel]:
    """The leading eigenvalues of the Hessian, and the smallest."""
    plot = Plot(last_step=run.last_step, measure="eigenvalue")
    top, bottom = trace(run, TOP), trace(run, "curvature/smallest")
    eigenvalues = traces(run, "curvature/eigenvalue")
    for i, (rank, t) in enumerate(eigenvalues.items()):
        plot.line(t, f"λ{rank}", PALETTE[0], width=2 if i == 0 else 1.4)
        plot.data[-1]["line"]["color"] = faded(PALETTE[0], max(0.45, 1 - 0.14 * i))
    if len(plot.keys) > 2:
        plot.keys[1:] = [_together(plot.keys[1:])]
    if top is not None and not eigenvalues:
        plot.line(top, "sharpness", PALETTE[0])
    if bottom is not None:
        plot.line(bottom, "smallest", PALETTE[1])
    plot.missing(run, [TOP, "curvature/eigenvalue/1", "curvature/smallest"])
    if plot.data:
        reading = (
            "Curvature of the loss along its principal directions, with error bands; a negative "
            "eigenvalue is a direction in which the loss bends downwards."
        )
        yield plot.panel("eigenvalues", "Eigenvalues of the Hessian", reading + _made(run, TOP))


def _made(run: Log, name: str) -> str:
    """What second derivatives are, where they are not those of the loss, exact."""
    kind = run.rows(name)[-1].hessian if name in run else None
    if kind == "held":
        return " A part of the loss is held: it is detached or has a gradient of its own."
    return " Second derivatives are differences of gradients." if kind else ""


def _together(keys: list[Key]) -> Key:
    """One legend entry for the eigenvalues below the largest."""
    first, last = keys[0], keys[-1]
    return replace(
        first,
        label=f"{first.label} to {last.label}",
        colour=faded(PALETTE[0], 0.6),
        value=f"{first.value} … {last.value}",
        traces=tuple(index for key in keys for index in key.traces),
    )


def orbit_free_panel(run: Log) -> Iterator[Panel]:
    """The sharpness across the symmetry orbits beside the plain one."""
    free, plain = trace(run, "curvature/orbit_free_sharpness"), trace(run, TOP)
    if free is None:
        return
    log = all(r.value > 0 for t in (free, plain) if t is not None for r in t.records)
    plot = Plot(last_step=run.last_step, log=log, measure="sharpness")
    plot.line(free, "across the orbits", PALETTE[0])
    if plain is not None:
        plot.line(plain, "plain", PALETTE[1])
    plot.missing(run, ["curvature/orbit_free_sharpness"])
    reading = (
        "The largest curvature across the symmetry orbits, at their balanced point, beside the "
        "plain one, which rescaling the weights changes without changing a prediction."
    )
    yield plot.panel("orbit-free", "Sharpness without symmetry orbits", reading)


def tracking_panel(run: Log) -> Iterator[Panel]:
    """The sharpness as the tracker follows it."""
    tracked = trace(run, "tracking/sharpness")
    if tracked is None:
        return
    plot = Plot(last_step=run.last_step)
    plot.line(tracked, "sharpness", PALETTE[0])
    plot.missing(run, ["tracking/sharpness"])
    reading = (
        "The largest eigenvalue followed from step to step, with its own error bound; marks on "
        "the axis are steps at which another eigenvalue may have overtaken it."
    )
    yield plot.panel("tracking", "Tracked sharpness", reading)


def overlap_panel(run: Log) -> Iterator[Panel]:
    """How much of gradient, update and momentum lies in the sharpest directions."""
    plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %", measure="share of the energy")
    symmetries = [f"symmetry_overlap/{f}" for f in traces(run, "curvature/symmetry_overlap")]
    for i, name in enumerate(
        ("gradient_overlap", "update_overlap", "momentum_overlap", *symmetries)
    ):
        share = trace(run, f"curvature/{name}")
        subject = name.rpartition("/")[2].removesuffix("_overlap")
        colour = PALETTE[i % len(PALETTE)]
        if share is not None:
            plot.line(share, words(subject), colour)
    if plot.data:
        reading = (
            "Share of the energy that lies in the sharpest directions; a random vector has "
            "almost none there."
        )
        title = "Alignment with the sharpest directions"
        yield plot.panel("overlaps", title, reading, range=[0, 103])


TOPIC = Topic(
    question="Where does curvature point?",
    slug="curvature",
    explanation="Eigenvalues of the Hessian, and how much of the gradient and of the update lies "
    "in the sharpest directions.",
    rules=(sharpening, orbit_free, alignment, negative_curvature),
    panels=(
        eigenvalue_panel,
        stability_panel,
        orbit_free_panel,
        tracking_panel,
        overlap_panel,
        decrease_panel,
        rayleigh_panel,
        spectrum_panels,
    ),
    probes=("curvature", "tracking", "spectrum"),
)
