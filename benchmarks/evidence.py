"""The tables and pictures of docs/evidence.md, from what the benchmarks stored.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; this writes all of them anew:

    python benchmarks/evidence.py
"""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from drawing import Panel, picture
from evidence_cells import ROOT, correlation, number, results, summary, table
from evidence_hopes import hopes

PAGE = ROOT / "docs" / "evidence.md"
MARKED = re.compile(r"(<!-- table ([\w ]+) -->\n).*?(<!-- end -->)", re.S)


def reproduced() -> str:
    """A row a result: claim, reference, verdict."""
    rows = (
        (f"**{name}**: {row['claim']} (*{row['paper']}*)", row["reference"], row["verdict"])
        for name, row in results("reproduce")["rows"].items()
    )
    return table(("result", "in the paper", "here"), rows)


def figures() -> str:
    """A row a figure, with the setting of each result before its figures."""
    rows: list[tuple[str, str]] = []
    for name, row in results("reproduce")["rows"].items():
        rows.append((f"**{name}**: {row['setting']}", ""))
        rows += [(label, summary(values)) for label, values in row["figures"].items()]
    return table(("figure", "median (range over seeds)"), rows)


def levels() -> str:
    """Means of each way of training, on both kinds of data."""
    rows: list[tuple[str, ...]] = []
    for name, data in results("link")["data"].items():
        header = ("trained", *next(iter(data["levels"].values())))
        rows.append((f"**{name}**", *[""] * (len(header) - 1)))
        for level, of in data["levels"].items():
            rows.append((level, *(_level(key, values) for key, values in of.items())))
    return table(header, rows)


def _level(key: str, values: Sequence[float | None]) -> str:
    """The mean over seeds; a rate as it is."""
    if key == "rate":
        return f"{values[0]}" if len(set(values)) == 1 else "several"
    known = [v for v in values if v is not None]
    return number(statistics.fmean(known)) if known else "–"


def links() -> str:
    """Correlations of the equivariance error with each outcome, on both kinds of data."""
    rows: list[tuple[str, ...]] = []
    for name, data in results("link")["data"].items():
        rows.append((f"**{name}**", *[""] * 6))
        for scope, of in data["links"].items():
            known = [link for link in of.values() if link]
            rows.append(
                (scope, str(known[0]["runs"]), *(correlation(link) for link in of.values()))
            )
    return table(("runs", "number", *of), rows)


def enforced() -> str:
    """Methods of enforcing quarter turns on networks that learn upright digits."""
    methods = results("enforced")["digits"] | results("tied")["digits"]
    rows = (
        (
            name,
            *(number(row[key]) for key in ("upright", "turned", "relative error")),
            str(row["forwards a call"]),
        )
        for name, row in methods.items()
    )
    return table(("method", "upright", "turned", "equivariance error", "forwards a call"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "reproduced": reproduced,
    "figures": figures,
    "levels": levels,
    "links": links,
    "hopes": hopes,
    "enforced": enforced,
}


def filled(page: str) -> str:
    """The page with every table as the results have it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def link_picture() -> str:
    """Test accuracy over equivariance error, a point a run, on both kinds of data."""
    panels = []
    for name, data in results("link")["data"].items():
        series = {
            level: list(zip(of["equivariance error"], of["test accuracy"], strict=True))
            for level, of in data["levels"].items()
        }
        furthest = max(x for points in series.values() for x, _ in points)
        lowest = math.floor(min(y for points in series.values() for _, y in points) * 10) / 10
        panels.append(
            Panel(
                title=f"digits {name}",
                x="equivariance error",
                y="test accuracy",
                series=series,
                xlim=(0.0, math.ceil(furthest * 5) / 5),
                ylim=(lowest, 1.0),
                ticks=(4, 4),
            )
        )
    return picture(panels, "Test accuracy over equivariance error on digits with and without")


def edge_picture() -> str:
    """Sharpness and alignment of gradient descent at three rates."""
    courses = results("reproduce")["courses"]
    axes: dict[str, Any] = {"x": "step", "xlim": (0, 1500), "lines": True, "ticks": (3, 4)}
    series = lambda kind: {f"η = {lr}": of[kind] for lr, of in courses.items()}
    panels = [
        Panel(
            title="sharpness × η/2",
            y="",
            series=series("sharpness"),
            ylim=(0, 1.6),
            level=1.0,
            **axes,
        ),
        Panel(
            title="share of the gradient in the top 10",
            y="",
            series=series("overlap"),
            ylim=(0, 1.0),
            **axes,
        ),
    ]
    return picture(panels, "Sharpness and share of the gradient in the top directions by step")


PICTURES: dict[str, Callable[[], str]] = {"link.svg": link_picture, "edge.svg": edge_picture}

if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    for name, drawn in PICTURES.items():
        (PAGE.parent / "pictures" / name).write_text(drawn())
