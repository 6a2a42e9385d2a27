"""The page: a run as one HTML file that needs no network, for wide and narrow screens."""

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eqtoolbox.record.files import Folder
from eqtoolbox.report.drawing import DARK, PALETTE
from eqtoolbox.report.explained import explained
from eqtoolbox.report.headline import answers, verdict
from eqtoolbox.report.marks import marks
from eqtoolbox.report.placed import Places, cards, groups
from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import sections
from eqtoolbox.report.topics.loss import training_panel
from eqtoolbox.report.trace import NO_PROBES, arrays, judged, skipped, trace
from eqtoolbox.report.words import number, percent, plural, printable, typeset

LAYOUT = Path(__file__).parent / "layout"
EVENTS = 200  # newest events shown
COSTS = (
    "steps by probe", "measured", "skipped", "not converged", "not applicable", "failed",
    "mean time", "Hessian products",
)  # fmt: skip
ON_TOP = 3  # findings that are not folded: of more nobody knows where to begin

Table = dict[str, Any]


def write_page(run: Run, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run: findings, panels by question, events, all latest values.

    Args:
        run: the run to report.
        path: file to write; an existing directory gets a `report.html`.

    Returns:
        The path of the file, replaced in one piece.

    Raises:
        ImportError: jinja2 is missing.
        OSError: the file cannot be written; says which and why.
    """
    return publish(content(run), path)


def publish(shown: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write what `content` gives, or something of its shape, as a page; see `write_page`."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError('write_page needs jinja2: pip install "eqtoolbox[report]"') from error
    target = Path(path) / "report.html" if Path(path).is_dir() else Path(path)
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
    template = environment.get_template("page.html.j2")
    library = (LAYOUT / "plotly-basic.min.js").read_text(encoding="utf-8")
    text = template.render(
        **shown,
        colours=list(zip(PALETTE, DARK, strict=True)),
        library=library.replace("</script", "<\\/script"),
    )
    try:
        _write(target, text)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write the page to {target} ({error.strerror}); name another file"
        ) from error
    return target


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
        "answers": answers(run, findings, places),
        "cards": cards(findings, places),
        "groups": groups(findings, places),
        "marks": marks(run),
        "facts": list(_facts(run)),
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
        "versions": " · ".join(
            f"{name} {run.info[name]}"
            for name in ("eqtoolbox", "torch", "python")
            if name in run.info
        ),
    }


def _rows(panels: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Panels with whether each is wide: small multiples are, and the first of an odd run."""
    layouts = [(p, (p["figure"] if isinstance(p, dict) else p.figure)["layout"]) for p in panels]
    for many, group in groupby(layouts, lambda pair: "multiples" in pair[1].get("meta", {})):
        row = [panel for panel, _ in group]
        yield from ((p, many or (i == 0 and len(row) % 2 == 1)) for i, p in enumerate(row))


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """The header: what was trained, how, how long, when."""
    info, model = run.info, run.info.get("model") or {}
    if model.get("class"):
        yield "model", str(model["class"])
    if "parameters" in model:
        frozen = model["parameters"] - model.get("trainable", model["parameters"])
        yield "parameters", f"{model['parameters']:,}" + (f" ({frozen:,} frozen)" if frozen else "")
    optimizer = info.get("optimizer") or {}
    if optimizer:
        yield "optimizer", f"{optimizer.get('class')}{_options(optimizer.get('groups') or [])}"
    segments = info.get("segments") or 1
    resumed = ""
    if segments > 1:
        resumed = ", resumed once" if segments == 2 else f", resumed {segments - 1} times"
    yield "last record", f"step {run.last_step:,}{resumed}"
    if info.get("started"):
        began = datetime.datetime.fromtimestamp(info["started"], tz=datetime.UTC)
        yield "started", f"{began:%d %B %Y, %H:%M} UTC".lstrip("0")
        done = info.get("finished")
        took = max(0.0, done - info["started"]) if done else 0.0  # clocks may be set back
        yield "took", _duration(took) if done else "not finished when read"
    place = " · ".join(str(info[k]) for k in ("device", "dtype") if info.get(k))
    if place:
        yield "on", place
    if "budget" in info:
        budget = info["budget"]
        yield (
            "budget",
            "none, exact schedules" if budget is None else f"{percent(budget)} of the time",
        )
    if info.get("seed") is not None:
        yield "seed", str(info["seed"])


def _options(groups: list[dict[str, Any]]) -> str:
    """Options of the first parameter group, and how many more there are."""
    if not groups:
        return ""
    names = {"lr": "lr", "momentum": "momentum", "weight_decay": "decay"}
    shown = [f"{names[k]} {number(v)}" for k, v in groups[0].items() if k in names and v]
    more = f", {plural(len(groups), 'group')}" if len(groups) > 1 else ""
    return (", " + ", ".join(shown) if shown else "") + more


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{number(seconds)} s"


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
