"""The page: one run or several as a file that needs no network, for wide and narrow screens."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eqtoolbox.record.files import Folder
from eqtoolbox.report import several
from eqtoolbox.report.drawing import DARK, PALETTE
from eqtoolbox.report.explained import explained
from eqtoolbox.report.glossary import used
from eqtoolbox.report.header import facts, versions
from eqtoolbox.report.headline import answers, verdict
from eqtoolbox.report.marks import marks
from eqtoolbox.report.placed import Places, cards, groups
from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import sections
from eqtoolbox.report.topics.loss import training_panel
from eqtoolbox.report.trace import NO_PROBES, arrays, judged, skipped, trace
from eqtoolbox.report.words import number, printable, typeset

LAYOUT = Path(__file__).parent / "layout"
EVENTS = 200  # newest events shown
COSTS = (
    "steps by probe", "measured", "skipped", "not converged", "not applicable", "failed",
    "mean time", "Hessian products",
)  # fmt: skip
ON_TOP = 3  # findings that are not folded: of more nobody knows where to begin

Table = dict[str, Any]


def write_page(runs: Run | Sequence[Run], path: str | os.PathLike[str]) -> Path:
    """Write the report of a run, or one page of several: findings, panels by question, values.

    The page of several runs says what they do not have in common: findings that not all have,
    values that differ beyond their errors, who keeps which symmetry and charge; and draws their
    curves over each other.

    Args:
        runs: the run to report, or several.
        path: file to write; an existing directory gets a `report.html`, of several runs a
            `compared.html`.

    Returns:
        The path of the file, replaced in one piece.

    Raises:
        TypeError: something is no `Run`.
        ValueError: there is no run.
        ImportError: jinja2 is missing.
        OSError: the file cannot be written; says which and why.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> for name, loss in ("a", 2.5), ("b", 0.5):
        ...     (home / name).mkdir()
        ...     row = f'{{"step": 4, "name": "training/loss", "value": {loss}}}'
        ...     _ = (home / name / "records.jsonl").write_text(row)
        >>> write_page([Run(home / "a"), Run(home / "b")], home).name
        'compared.html'
    """
    among: list[Any] = list(runs) if isinstance(runs, list | tuple) else [runs]
    for run in among:
        if not isinstance(run, Run):
            raise TypeError(f"expected runs, got {run!r}; read one with eq.Run(run_dir)")
    if not among:
        raise ValueError("expected a run or several, got none")
    if len(among) > 1:
        return publish(several.content(among), path, "compared.html")
    return publish(content(among[0]), path)


def publish(shown: dict[str, Any], path: str | os.PathLike[str], name: str = "report.html") -> Path:
    """Write what `content` gives, or something of its shape, as a page; see `write_page`."""
    text = rendered(shown)
    target = Path(path) / name if Path(path).is_dir() else Path(path)
    try:
        _write(target, text)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write the page to {target} ({error.strerror}); name another file"
        ) from error
    return target


def rendered(shown: dict[str, Any]) -> str:
    """What `content` gives, or something of its shape, as the text of a page."""
    template = templates().get_template("page.html.j2")
    library = (LAYOUT / "plotly-basic.min.js").read_text(encoding="utf-8")
    text = template.render(
        **shown,
        colours=list(zip(PALETTE, DARK, strict=True)),
        library=library.replace("</script", "<\\/script"),
    )
    return str(text)


def templates() -> Any:
    """The templates of `LAYOUT`: every text that they are given is escaped and printable.

    Raises:
        ImportError: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError('write_page needs jinja2: pip install "eqtoolbox[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(LAYOUT),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typeset": typeset, "rows": _rows}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Folder(target.parent)
    try:
        folder.replace(target.name, text.encode())
    finally:
        folder.close()


def content(run: Run) -> dict[str, Any]:
    """Everything that the template shows, as plain values."""
    findings = run.findings()
    wrong = [f for f in findings if f.level in ("alarm", "warning")]
    parts, loss = sections(run, run.topics), training_panel(run)
    places = Places(parts, loss)
    return {
        "title": run.path.resolve().name,
        "verdict": verdict(run, findings),
        "answers": (told := answers(run, findings, places)),
        "words": used([f"{a['question']} {a['answer']}" for a in told]),
        "cards": cards(findings, places),
        "groups": groups(findings, places),
        "marks": marks(run),
        "facts": list(facts(run)),
        "findings": wrong[:ON_TOP],
        "more": [*wrong[ON_TOP:], *(f for f in findings if f.level == "note")],
        "good": [f for f in findings if f.level == "good"],
        "loss": loss,
        "sections": parts,
        "costs": _costs(run),
        "events": run.events[-EVENTS:],
        "happened": _happened(run.events[-EVENTS:]),
        "left_out": max(0, len(run.events) - EVENTS),
        "values": [_latest(run, name) for name in run.names()],
        "versions": versions(run),
    }


def _rows(panels: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Panels with whether each is wide: small multiples are, and the first of an odd run."""
    layouts = [(p, (p["figure"] if isinstance(p, dict) else p.figure)["layout"]) for p in panels]
    for many, group in groupby(layouts, lambda pair: "multiples" in pair[1].get("meta", {})):
        row = [panel for panel, _ in group]
        yield from ((p, many or (i == 0 and len(row) % 2 == 1)) for i, p in enumerate(row))


def _costs(run: Run) -> Table | None:
    """One row a probe: what was measured, what was missed, what it took."""
    status: dict[str, Counter[str]] = {}
    for (probe, word), steps in run.attempts().items():
        if probe not in NO_PROBES:
            status.setdefault(probe, Counter())[word] = steps
    rows, left_out = [], skipped(run)
    for probe, count in sorted(status.items()):
        seconds = trace(run, f"cost/seconds/{probe}")
        products = trace(run, f"cost/matvecs/{probe}")
        counts = (
            count["ok"], left_out.get(probe, 0), count["not_converged"], count["not_applicable"],
            count["failed"] + count["non_finite"],
        )  # fmt: skip
        took = f"{number(float(arrays(seconds)[1].mean()))} s" if seconds else ""
        made = f"{arrays(products)[1].sum():,.0f}" if products else ""
        rows.append([probe, *(str(cell or "–") for cell in (*counts, took, made))])
    return _table("", COSTS, rows, [False, *[True] * (len(COSTS) - 1)]) if rows else None


def _table(
    title: str, columns: Sequence[str], rows: list[list[str]], numeric: Sequence[bool]
) -> Table:
    """A table as the page shows it: cells are text, numeric columns stand right."""
    return {"title": title, "columns": [*columns], "rows": rows, "numeric": [*numeric]}


def _happened(events: list[dict[str, Any]]) -> Table:
    kinds = ("step", "kind", "probe", "message")
    rows = [[str(event.get(kind, "")) for kind in kinds] for event in events]
    return _table("", kinds, rows, [True, False, False, False])


def _latest(run: Run, name: str) -> dict[str, str]:
    """The last certified value of a name and the status of its last attempt."""
    newest, t = run.rows(name)[-1], trace(run, name)
    row = {"name": name, "status": newest.status.replace("_", " "), "note": newest.note}
    told = explained(name)
    row["meaning"] = f"{told.meaning}\n{told.formula}\n{told.reading}" if told else ""
    row |= dict.fromkeys(("value", "stderr", "floor", "verdict", "unit"), "")
    row["step"] = str(newest.step)
    if t is not None:
        row |= {"value": number(t.last.value, 4), "step": str(t.last.step)}
        row["unit"] = "" if t.last.unit == "1" else t.last.unit
        row["stderr"] = "" if t.last.stderr is None else number(t.last.stderr, 2)
        row["floor"] = "" if t.last.floor is None else number(t.last.floor, 2)
        row["verdict"] = judged(t.last) or ""
    return row
