"""The gallery of the demos: docs/gallery.md with what their runs found, and a picture of each.

`python .ci/gallery.py` runs all demos (some minutes) and writes pictures, what the runs said
(docs/pictures/gallery.json) and the page; `--runs FOLDER` takes FOLDER/NAME/ and FOLDER/NAME.json,
as `eqtoolbox demo NAME --json --run-dir FOLDER/NAME > FOLDER/NAME.json` writes them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eqtoolbox.command.demo.catalogue import DEMOS
from eqtoolbox.report.run import Run
from eqtoolbox.report.words import typeset

DOCS = Path(__file__).parents[1] / "docs"
PICTURES, FOUND = DOCS / "pictures/gallery", DOCS / "pictures/gallery.json"
QUESTIONS = {  # of each demo: what is asked, and the record that the picture shows
    "digits": ("What happens inside an ordinary training?", "curvature/stability"),
    "rotated": (
        "Must a symmetry be built in, or can it be learned from turned examples?",
        "equivariance/relative_error/cyclic4",
    ),
    "volume": (
        "Which symmetries of a cube are left where slices are thick?",
        "equivariance/relative_error/poses",
    ),
    "robot": (
        "Does a network learn that a robot with two equal arms has a mirror image?",
        "equivariance/relative_error/mirror",
    ),
    "flow": (
        "Which symmetries of a fluid does a surrogate of its solver keep?",
        "equivariance/relative_error/turns-and-mirrors",
    ),
    "burgers": (
        "Can a network that has seen still air only predict waves in the wind?",
        "equivariance/relative_error/boosts",
    ),
    "graphs": (
        "What does it cost to forget that nodes have no order?",
        "equivariance/relative_error/relabelling",
    ),
    "molecules": (
        "Does a potential know that molecules turn, and that atoms have no numbers?",
        "equivariance/relative_error/motions",
    ),
    "denoiser": (
        "Are the points that a generative model makes as symmetric as those that it saw?",
        "equivariance/relative_error/thirds",
    ),
    "tokens": (
        "Where only the words matter, do positions harm?",
        "equivariance/relative_error/shuffles",
    ),
    "text": (
        "What do the symmetries of a transformer conserve under Adam and SGD, and what moves it?",
        "conservation/drift/gain_rescale",
    ),
}
FINDINGS = {  # beside the comparison of the networks: how they begin
    "digits": (
        "Symmetry under quarter turns",
        "Rescale charges",
        "Sharpness ×",
        "The curvature along rescale",
    ),
    "text": ("Gain rescale charges",),
}
_HEAD = """# Gallery

Each of these is a real problem, small enough for a minute on one core, and offline. The sentences
below are what the runs said (`python .ci/gallery.py` runs them and writes this page); each run
leaves a page with all its numbers. `pip install "eqtoolbox[demos]"` brings what they need. In the
pictures a line is a network, and a dotted one its noise floor.
"""


def said(name: str, told: dict[str, Any]) -> dict[str, Any]:
    """What the page keeps of a demo's `--json`: its comparison, and the findings that are asked."""
    runs, begin = told["runs"], FINDINGS.get(name, ())
    found = [
        f"{entry}: {f['text']}" if len(runs) > 1 else f["text"]
        for entry, run in runs.items()
        for f in run["findings"]
        if begin and f["text"].startswith(begin)
    ]
    return {"said": found + told["comparison"]}


def markdown(found: dict[str, Any]) -> str:
    """The page, of what all demos said."""
    parts = [_HEAD]
    for name, demo in DEMOS.items():
        question, record = QUESTIONS[name]
        sentences = "\n".join(f"- {typeset(text)}" for text in found[name]["said"])
        parts += [
            f"## {name.capitalize()}\n\n**{question}** {demo.title[0].upper()}{demo.title[1:]}.\n",
            f"![{record} over the steps](pictures/gallery/{name}.png)\n",
            f"{sentences}\n\n```bash\neqtoolbox demo {name}\n```\n",
        ]
    return "\n".join(parts)


def figure(name: str, folder: Path) -> Any:
    """The record of a demo over the steps, one line a network, its noise floor dotted."""
    import plotly.graph_objects as go

    record, entries = QUESTIONS[name][1], DEMOS[name].entries
    drawn, colours = go.Figure(), ("#3b7bbf", "#d1603d", "#2f8f6b", "#8a63b0", "#8a7a1f")
    for entry, colour in zip(entries, colours, strict=False):
        run = Run(folder / entry if len(entries) > 1 else folder)
        steps, values = run.series(record)
        line = {"color": colour}
        drawn.add_scatter(x=steps, y=values, name=entry, line=line)
        rows = [r for r in run.records(record) if r.floor]
        dotted = {"color": colour, "dash": "dot", "width": 1}
        drawn.add_scatter(
            x=[r.step for r in rows],
            y=[r.floor for r in rows],
            mode="lines",
            line=dotted,
            showlegend=False,
        )
    kind = "log" if record.startswith(("equivariance", "conservation")) else "linear"
    drawn.update_layout(template="simple_white", title=record, xaxis_title="step")
    drawn.update_yaxes(type=kind, exponentformat="power")
    return drawn


def main(folder: Path) -> None:
    from notebooks import picture

    PICTURES.mkdir(exist_ok=True)
    found = {}
    for name in DEMOS:
        file = folder / f"{name}.json"
        if not file.exists():
            command = [sys.executable, "-m", "eqtoolbox", "demo", name, "--json"]
            with file.open("w") as out:
                subprocess.run([*command, "--run-dir", folder / name], stdout=out, check=True)
        found[name] = said(name, json.loads(file.read_text()))
        (PICTURES / f"{name}.png").write_bytes(picture(figure(name, folder / name)))
    FOUND.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (DOCS / "gallery.md").write_text(markdown(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="a folder with runs (default: run them now)")
    given = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        main(given or Path(temporary))
