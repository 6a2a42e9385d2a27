"""Plotting: records over steps as a figure of their own, drawn as the page draws them."""

from typing import Any

import numpy as np

from eqtoolbox.report.directory import nearest
from eqtoolbox.report.drawing import PALETTE, wide
from eqtoolbox.report.explained import explained
from eqtoolbox.report.figures import Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import trace


def figure(run: Log, name: str) -> Any:
    """A plotly figure of one name, or of all targets of a quantity; see `Run.plot`."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError(
            'Run.plot needs plotly: pip install "eqtoolbox[report]"; Run.series gives the numbers'
        ) from error
    prefix = name.rstrip("/") + "/"
    names = [name] if name in run else [prefix + target for target in run.targets(name.rstrip("/"))]
    if not names:
        raise KeyError(f"no record is named {name!r}; {nearest(name, run.names())}")
    found = {n: t for n in names if (t := trace(run, n)) is not None}
    values = np.concatenate([np.zeros(0), *(t.values for t in found.values())])
    plot = Plot(last_step=run.last_step, log=wide(values))
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
    for (n, t), colour in zip(found.items(), colours, strict=True):
        plot.line(t, n.removeprefix(prefix), colour)
    plot.floors(list(found.values()), colours)
    plot.missing(run, names)
    told = explained(names[0])
    panel = plot.panel("plot", name, told.meaning if told else "")
    title = {"text": name, "subtitle": {"text": panel.reading}}
    shown = [{"showlegend": "name" in trace} | trace for trace in panel.figure["data"]]
    return go.Figure(shown, panel.figure["layout"] | {"title": title, "template": "simple_white"})
