"""A demo performed in the terminal: every network trained, its findings, and the comparison."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eqtoolbox.command.demo.bought import findings, section
from eqtoolbox.command.demo.closing import closing, table
from eqtoolbox.command.demo.contest import contest
from eqtoolbox.command.demo.training import Outcome, train
from eqtoolbox.demos.demo import Demo
from eqtoolbox.report import Run, summary_data, write_page
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.page import publish
from eqtoolbox.report.several import content
from eqtoolbox.report.words import listing
from eqtoolbox.sinks.live import LiveLine

_MARKS = {"alarm": "!!", "warning": "! ", "note": "- ", "good": "ok"}


def show(demo: Demo, run_dir: Path, *, steps: int | None = None, quiet: bool = False) -> Any:
    """Train all networks of a demo, print what was found, and return it as JSON values.

    Args:
        demo: which one.
        run_dir: of the run; several networks get a directory each below it.
        steps: optimizer steps of each network; the demo's own unless given.
        quiet: print nothing.

    Returns:
        {"demo", "comparison": sentences, "report": the page of all where there are several,
        "enforced": scores from fewer samples and the price, where something is enforced,
        "runs": by network score, paths, findings, numbers}.
    """
    torch.set_num_threads(1)  # a small network gains nothing from more, and loses on a busy machine
    count = demo.steps if steps is None else steps
    say = (lambda _: None) if quiet else print
    say(f"Training {demo.title} -> {run_dir}\n")
    data = demo.load()
    outcomes: dict[str, Outcome] = {}
    runs: dict[str, Any] = {}
    for entry in demo.entries:
        where = run_dir / entry if len(demo.entries) > 1 else run_dir
        if len(demo.entries) > 1:
            say(f"{'' if not runs else chr(10)}--- {entry}\n")
        with tqdm(total=count, unit="step", leave=False, disable=quiet or None) as bar:
            outcomes[entry] = train(
                demo,
                entry,
                data,
                steps=count,
                run_dir=str(where),
                sinks=() if quiet else (LiveLine(),),
                after_step=lambda *_, bar=bar: bar.update(),
            )
        run, score = Run(where), outcomes[entry].score
        page = write_page(run, where / "report.html")
        say(
            f"\nTest {demo.score.name} {score:.1%}. What the monitor found, by medians of 5 "
            f"measurements:\n\n{marked(run.findings())}\n\n"
            f"Numbers:  eqtoolbox summary {where}\nReport:   {page.resolve()}"
        )
        paths = {"run": str(where), "report": str(page)}
        runs[entry] = {demo.score.name: score, **paths, **summary_data(run)}
    found, bought = closing(demo, demo.laws(data), outcomes), None
    if demo.contest:
        bought = contest(demo, demo.contest, data, steps)
        found += findings(demo, demo.contest, outcomes, bought)
    if found:
        say(f"\n--- compared\n\n{table(demo, outcomes)}\n\n{marked(found)}")
    told = {"demo": demo.name, "comparison": [f.text for f in found], "runs": runs}
    if len(runs) > 1:
        shown = content([Run(run["run"]) for run in runs.values()])
        shown["title"] = f"{demo.name.capitalize()}: {listing(list(runs))}"
        shown["groups"].insert(0, _group(found))
        if demo.contest and bought:
            shown["sections"].insert(0, section(demo, demo.contest, outcomes, bought))
            told["enforced"] = asdict(bought)
        page = publish(shown, run_dir, "compared.html")
        say(f"\nAll on one page:  {page.resolve()}")
        told["report"] = str(page)
    return told


def _group(found: list[Finding]) -> dict[str, Any]:
    """What was found of all networks together, as the page of several runs shows a group."""
    levels = dict(Counter(f.level for f in found))
    question = "What the data keep, and how the networks compare"
    linked: list[tuple[Finding, dict[str, str]]] = [(f, {}) for f in found]
    return {"slug": "", "question": question, "findings": linked, "open": True, "levels": levels}


def marked(findings: list[Finding]) -> str:
    """Findings, one a line, marked by level."""
    tried = {f: f"\n     Try: {'; '.join(f.remedy)}." for f in findings if f.remedy}
    return "\n".join(f"  {_MARKS[f.level]} {f.text}{tried.get(f, '')}" for f in findings)
