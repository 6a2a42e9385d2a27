"""Depth: where in the network a symmetry breaks, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqtoolbox.report.drawing import GREY, PALETTE, dash, far_below, plain
from eqtoolbox.report.figures import Figure, Key, Panel
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import Curve, traces
from eqtoolbox.report.words import number, symmetry

ROOM, ROW = 70, 24  # pixels of the axis and of a layer
ZERO = 0.1  # of the least number: where exact zeros are drawn

Layers = dict[str, Curve]  # by the name of the layer, from the inputs on


def layer_panels(run: Log) -> Iterator[Panel]:
    """The newest violation up to each layer with its floor, and what each layer adds to it."""
    if found := _by_symmetry(traces(run, "equivariance/layer_error")):
        data, keys = _lines(found)
        floors = {layer: t.last.floor for group in found.values() for layer, t in group.items()}
        known = {layer: floor for layer, floor in floors.items() if floor}
        errors = [x for line in data for x in line["x"]]
        note = far_below(min(errors), max(known.values(), default=0.0))
        sizes = [x for x in errors if x] + ([] if note else list(known.values()))
        least = ZERO * min(sizes, default=1.0)
        for line in data:
            line["x"] = [x or least for x in line["x"]]
        if known and not note:
            keys.append(Key(label="noise floor", colour=GREY, traces=(len(data),), dash="dot"))
            data.append({
                "type": "scatter", "mode": "lines", "hoverinfo": "skip", "y": list(known),
                "x": list(known.values()), "line": {"color": GREY, "width": 1.3, "dash": "dot"},
            })  # fmt: skip
        reading = (
            "Relative error of the network up to each layer, from the inputs at the top to the "
            "outputs: the first layer above its floor is where the symmetry breaks."
        )
        reading += f" {note['text'].removeprefix('↓ ').capitalize()}." if note else ""
        panel = _panel("layer_error", data, keys, "Equivariance error, layer by layer", reading)
        panel.figure["layout"]["xaxis"] |= {"type": "log"} | ({} if note else {"dtick": 1})
        yield panel
    if found := _by_symmetry(traces(run, "equivariance/layer_share")):
        yield _panel(
            "layer_share", *_lines(found), "Where the violation arises",
            "What each layer adds to the Lie derivative of the network; the shares of a symmetry "
            "add up to 1, negative ones cancel others.",
        )  # fmt: skip


def _by_symmetry(found: Mapping[str, Curve]) -> dict[str, Layers]:
    """Traces by symmetry and layer; targets are `flip/03.conv2`."""
    grouped: dict[str, Layers] = {}
    for target, t in sorted(found.items()):
        name, _, place = target.partition("/")
        grouped.setdefault(name, {})[place.partition(".")[2] or place] = t
    return grouped


def _lines(found: Mapping[str, Layers]) -> tuple[list[Figure], list[Key]]:
    data: list[Figure] = []
    keys: list[Key] = []
    for i, (name, layers) in enumerate(found.items()):
        colour, label = PALETTE[i % len(PALETTE)], symmetry(name)
        sizes = [t.last.value for t in layers.values()]
        keys.append(Key(label=label, colour=colour, traces=(i,), dash=dash(colour)))
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": label,
            "x": plain(np.array(sizes)), "y": list(layers),
            "text": [number(size) for size in sizes],
            "hovertemplate": "%{y}: %{text}", "meta": next(iter(layers.values())).name,
            "line": {"color": colour, "width": 1.8, "dash": dash(colour)},
            "marker": {"color": colour, "size": 6},
        })  # fmt: skip
    return data, keys


def _panel(
    quantity: str, data: list[Figure], keys: Sequence[Key], title: str, reading: str
) -> Panel:
    rows = list(dict.fromkeys(layer for line in data for layer in line["y"]))
    what = "share of the violation" if quantity == "layer_share" else "relative error so far"
    layout: dict[str, Any] = {
        "height": ROOM + ROW * len(rows),
        "xaxis": {"title": {"text": f"{what} (dimensionless)"}, "showgrid": True, "nticks": 5},
        "yaxis": {
            "type": "category", "categoryarray": rows, "autorange": "reversed",
            "automargin": True, "title": {"text": "layer"}, "ticksuffix": "  ",
        },
    }  # fmt: skip
    figure = {"data": data, "layout": layout}
    slug = f"equivariance-{quantity}"
    return Panel(slug=slug, title=title, reading=reading, figure=figure, keys=tuple(keys))
