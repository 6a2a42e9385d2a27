"""Panels on curvature: eigenvalues, stability, alignment, predicted against measured."""

from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.report.drawing import PALETTE, faded
from eqtoolbox.report.figures import Key, Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.panels_spectrum import spectrum_panels
from eqtoolbox.report.trace import trace, traces
from eqtoolbox.report.words import words

TOP = "curvature/sharpness"


def curvature_panels(run: Log) -> Iterator[Panel]:
    """Every panel on the Hessian that has data."""
    for build in (
        _eigenvalues,
        _stability,
        _orbit_free,
        _tracking,
        _overlaps,
        _decrease,
        _rayleigh,
    ):
        yield from build(run)
    yield from spectrum_panels(run)


def _eigenvalues(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
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


def _stability(run: Log) -> Iterator[Panel]:
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


def _orbit_free(run: Log) -> Iterator[Panel]:
    free, plain = trace(run, "curvature/orbit_free_sharpness"), trace(run, TOP)
    if free is None:
        return
    log = all(r.value > 0 for t in (free, plain) if t is not None for r in t.records)
    plot = Plot(last_step=run.last_step, log=log)
    plot.line(free, "across the orbits", PALETTE[0])
    if plain is not None:
        plot.line(plain, "plain", PALETTE[1])
    plot.missing(run, ["curvature/orbit_free_sharpness"])
    reading = (
        "The largest curvature across the symmetry orbits, at their balanced point, beside the "
        "plain one, which rescaling the weights changes without changing a prediction."
    )
    yield plot.panel("orbit-free", "Sharpness without symmetry orbits", reading)


def _overlaps(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %")
    symmetries = [f"symmetry_overlap/{f}" for f in traces(run, "curvature/symmetry_overlap")]
    for i, name in enumerate(
        ("gradient_overlap", "update_overlap", "momentum_overlap", *symmetries)
    ):
        share = trace(run, f"curvature/{name}")
        subject = name.rpartition("/")[2].removesuffix("_overlap")
        colour = PALETTE[i % len(PALETTE)]
        if share is not None:
            plot.line(share, words(subject), colour)
            if subject == "update":  # under plain SGD it lies on the gradient's line
                plot.data[-1]["line"]["dash"] = "dot"
                plot.keys[-1] = replace(plot.keys[-1], dash="dot")
    if plot.data:
        reading = (
            "Share of the energy that lies in the sharpest directions; a random vector has "
            "almost none there."
        )
        title = "Alignment with the sharpest directions"
        yield plot.panel("overlaps", title, reading, range=[0, 103])


def _tracking(run: Log) -> Iterator[Panel]:
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


def _decrease(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
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


def _rayleigh(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
    for i, (family, measured) in enumerate(traces(run, "noether/rayleigh").items()):
        colour = PALETTE[i % len(PALETTE)]
        plot.line(measured, f"{words(family)}, measured", colour, mode="lines", width=6)
        plot.data[-1]["opacity"] = 0.35
        key = replace(plot.keys.pop(), label=words(family))
        predicted = trace(run, f"noether/predicted_rayleigh/{family}")
        if predicted is not None:
            plot.line(predicted, f"{words(family)}, predicted", colour, width=1.4)
            key = replace(key, traces=key.traces + plot.keys.pop().traces)
        plot.keys.append(key)
    if plot.data:
        reading = (
            "Rayleigh quotients of the Hessian: broad pale lines are measured, thin lines "
            "predicted from the gradient alone; they agree while the symmetry is exact."
        )
        yield plot.panel("rayleigh", "Curvature along symmetry directions", reading)
