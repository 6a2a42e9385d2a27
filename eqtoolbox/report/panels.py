"""Panels: the questions of a report and the figures that answer them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from eqtoolbox.record.record import Record
from eqtoolbox.report.drawing import PALETTE, arrays, faded, plain, thinned
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.panels_curvature import curvature_panels
from eqtoolbox.report.panels_discovery import asymmetry_panels, discovery_panels
from eqtoolbox.report.panels_discrete import discrete_panels
from eqtoolbox.report.panels_symmetry import conservation_panels, equivariance_panels
from eqtoolbox.report.trace import trace, traces
from eqtoolbox.report.words import listing, number

WIDE = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
NOISY = 100  # records from which a running median is drawn over the loss


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question with the panels that answer it and remarks on what could not be answered."""

    question: str
    slug: str
    panels: tuple[Panel, ...]
    remarks: tuple[str, ...] = ()


def sections(run: Log) -> list[Section]:
    """The questions that this run has records for; a panel without data is left out."""
    found = []
    for question, slug, probes, build in _QUESTIONS:
        panels, remarks = tuple(build(run)), tuple(_remarks(run, probes))
        if panels or remarks:
            found.append(Section(question=question, slug=slug, panels=panels, remarks=remarks))
    return found


def training_panel(run: Log) -> Panel | None:
    """The training loss with its running median."""
    loss = trace(run, "training/loss")
    if loss is None:
        return None
    steps, values = arrays(loss)
    log = bool(values.min() > 0 and values.max() > WIDE * values.min())
    plot = Plot(last_step=run.last_step, log=log)
    plot.line(loss, "loss", PALETTE[0])
    reading = f"Loss of each recorded batch, {'logarithmic' if log else 'linear'} axis."
    if len(values) > NOISY:
        plot.data[-1]["line"] = {"color": faded(PALETTE[0], 0.35), "width": 1}
        kept, window = thinned(values), max(5, len(values) // 100)
        near = [values[max(0, i - window) : i + window + 1] for i in kept]
        median = np.array([np.median(part) for part in near])
        bold = {"line": {"color": PALETTE[0], "width": 2}, "name": "median", "text": None}
        heights = {"x": plain(steps[kept]), "y": plain(median), "hovertemplate": "%{y:.3~g}"}
        plot.data.append(plot.data[-1] | bold | heights)
        reading = f"{reading[:-1]}; the bold line is its running median."
    plot.missing(run, ["training/loss"])
    plot.keys.clear()
    return plot.panel("loss", "Training loss", reading)


def cost_panels(run: Log) -> Iterator[Panel]:
    """Seconds per probe and the overhead against its budget."""
    seconds = {p: float(arrays(t)[1].sum()) for p, t in traces(run, "cost/seconds").items()}
    if seconds:
        yield _seconds(dict(sorted(seconds.items(), key=lambda item: item[1])))
    overhead, budget = trace(run, "cost/overhead"), run.info.get("budget")
    if overhead is not None:
        shares = arrays(overhead)[1]
        log = bool(shares.min() > 0 and shares.max() > WIDE * shares.min())
        plot = Plot(last_step=run.last_step, log=log, scale=100.0, suffix=" %")
        plot.line(overhead, "overhead", PALETTE[0])
        if budget is not None:
            plot.level(100 * budget, "budget")
        reading = "Time of the monitor so far, its set-up apart, as a share of the training time."
        yield plot.panel("overhead", "Overhead", reading)


def _seconds(seconds: dict[str, float]) -> Panel:
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(seconds),
        "x": [float(f"{s:.4g}") for s in seconds.values()],
        "text": [f"{number(s)} s" for s in seconds.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": PALETTE[0]},
        "hoverinfo": "skip",
        "width": 0.55,
    }
    room = 1.25 * max(seconds.values()) or 1.0  # for the number beside the longest bar
    layout = {
        "xaxis": {"title": {"text": "seconds"}, "range": [0, room]},
        "yaxis": {"automargin": True, "ticksuffix": "  ", "showgrid": False},
    }
    reading = "Time that each probe took over the whole run."
    figure = {"data": [bars], "layout": layout}
    return Panel(slug="seconds", title="Seconds per probe", reading=reading, figure=figure)


def _remarks(run: Log, probes: tuple[str, ...]) -> Iterator[str]:
    """Why names without a single number have none."""
    names = [n for n in run.names() if n.split("/")[0] in probes]
    measured = {name for name in names if trace(run, name) is not None}
    reasons: dict[str, list[Record]] = {}
    for name in names:
        last = run.rows(name)[-1]
        answered = name in measured or any(m.startswith(f"{name}/") for m in measured)
        if not answered and "/self_test/" not in name:
            why = ": ".join(part for part in (last.status.replace("_", " "), last.note) if part)
            reasons.setdefault(why, []).append(last)
    for why, rows in reasons.items():
        yield f"Not measured: {listing([r.name for r in rows])} ({why})."


_QUESTIONS: tuple[tuple[str, str, tuple[str, ...], Callable[[Log], Iterator[Panel]]], ...] = (
    ("Is it equivariant?", "equivariance", ("equivariance",), equivariance_panels),
    ("What does asymmetry cost?", "asymmetry", ("asymmetry",), asymmetry_panels),
    ("Which symmetry does it learn?", "discovery", ("discovery",), discovery_panels),
    (
        "What is conserved, and what breaks it?",
        "conservation",
        ("noether", "conservation"),
        conservation_panels,
    ),
    ("Do units merge or die?", "units", ("discrete",), discrete_panels),
    (
        "Where does curvature point?",
        "curvature",
        ("curvature", "tracking", "spectrum"),
        curvature_panels,
    ),
    ("What did it cost?", "cost", ("cost",), cost_panels),
)
