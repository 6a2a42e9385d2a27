"""Panels on learned symmetry: the spectrum whose gap opens, and what asymmetry costs."""

from collections.abc import Iterator

from eqtoolbox.report.drawing import GREY, PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import Trace, trace, traces
from eqtoolbox.report.words import number, symmetry


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
        name = dimension.last.note
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


def asymmetry_panels(run: Log) -> Iterator[Panel]:
    """Gradient of the part of the loss that the violation makes, against that of the rest."""
    kinds = (
        ("cosine", "Gradient of the violation against the rest",
         "Cosine between the gradient of the violation's part of the loss and that of the rest: "
         "below 0, fitting the data and keeping the symmetry pull apart."),
        ("share", "Weight of the violation in the gradient",
         "|G| / (|G| + |g|), G the gradient of the violation's part of the loss, g of the rest."),
        ("data", "Asymmetry of the data",
         "Energy coefficient between the batch and its transformed self: near the dotted floor "
         "the data look the same after the transformation."),
    )  # fmt: skip
    for quantity, title, reading in kinds:
        found: dict[str, Trace] = traces(run, f"asymmetry/{quantity}")
        plot = Plot(last_step=run.last_step)
        colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
        for (name, t), colour in zip(found.items(), colours, strict=True):
            plot.line(t, symmetry(name), colour, judge=quantity == "data")
        plot.floors(list(found.values()), colours)
        if found:
            yield plot.panel(f"asymmetry-{quantity}", title, reading)
