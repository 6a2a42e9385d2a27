"""Which symmetry does it learn: continuous ones that the outputs have come to ignore."""

from collections.abc import Iterator

from eqtoolbox.report.drawing import GREY, PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import trace, traces
from eqtoolbox.report.words import number, plural


def learned(run: Log) -> Iterator[Finding]:
    """The algebra that the network has learned, when it did, and how clear its gap is."""
    dimension, gap = trace(run, "discovery/dimension"), trace(run, "discovery/gap")
    if dimension is None or gap is None:
        return
    evidence = (dimension.latest(), gap.latest())
    count, name = round(dimension.last.value), dimension.last.facts.text("algebra")
    null = trace(run, "discovery/null_gap")
    beside = "" if null is None else f" (shuffled data {number(null.last.value, 2)})"
    if not count:
        size = number(gap.last.value, 2)
        text = f"No continuous linear symmetry found: largest gap {size}{beside}."
        yield Finding(level="note", text=text, evidence=evidence)
        return
    steps = [r.step for r in dimension.records]
    lasting = len(steps)
    while lasting and round(dimension.records[lasting - 1].value) == count:
        lasting -= 1
    since = "from the start" if lasting == 0 else f"since step {steps[lasting]}"
    text = (
        f"The network's output ignores a continuous symmetry of {plural(count, 'dimension')}, "
        f"{name}, {since}: gap {number(gap.last.value, 2)}{beside}."
    )
    yield Finding(level="good", text=text, evidence=evidence)


def discovery_panels(run: Log) -> Iterator[Panel]:
    """Singular values over steps, and their largest ratio beside that of shuffled data."""
    values = traces(run, "discovery/singular_value")
    dimension = trace(run, "discovery/dimension")
    if values and dimension is not None:
        count = round(dimension.last.value)
        plot = Plot(last_step=run.last_step, log=True)
        for rank, t in enumerate(values.values()):
            plot.line(t, f"{rank + 1}", PALETTE[0] if rank < count else GREY, width=1.2)
        plot.keys.clear()
        name = dimension.last.facts.text("algebra")
        reading = (
            "Lie derivative along every direction of linear maps, relative, on a logarithmic axis; "
            f"the lowest {count} (blue) are the symmetries found: {name}."
            if count
            else "Lie derivative along every direction of linear maps, relative, on a logarithmic "
            "axis; no gap tells any of them from the rest."
        )
        yield plot.panel("discovery-spectrum", "Continuous symmetry that is being learned", reading)
    yield from _gap(run)


def _gap(run: Log) -> Iterator[Panel]:
    gap, null = trace(run, "discovery/gap"), trace(run, "discovery/null_gap")
    if gap is None:
        return
    plot = Plot(last_step=run.last_step, log=True)
    plot.line(gap, "largest gap", PALETTE[0])
    if null is not None:
        plot.line(null, "shuffled data", GREY)
    reading = (
        "Largest ratio of neighbouring singular values, on a logarithmic axis: a symmetry is "
        f"learned when it leaves that of shuffled data behind; now {number(gap.now, 2)}."
    )
    yield plot.panel("discovery-gap", "The gap opening", reading)


TOPIC = Topic(
    question="Which symmetry does it learn?",
    slug="discovery",
    explanation="Linear maps of the inputs along which the outputs do not move, told by a gap "
    "that shuffled data do not have.",
    rules=(learned,),
    panels=(discovery_panels,),
    probes=("discovery",),
)
