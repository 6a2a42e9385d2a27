"""The page: a run as one HTML file that needs no network, for wide and narrow screens."""

import datetime
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eqtoolbox.record.files import Folder
from eqtoolbox.report.explained import explained
from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import sections
from eqtoolbox.report.topics.loss import training_panel
from eqtoolbox.report.trace import NO_PROBES, arrays, judged, skipped, trace
from eqtoolbox.report.words import number, percent, plural, printable, typeset

EVENTS = 200  # newest events shown
ON_TOP = 3  # findings that are not folded: of more nobody knows where to begin


def write_page(run: Run, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run: findings, panels by question, events, all latest values.

    Args:
        run: the run to report.
        path: file to write; an existing directory gets a `report.html`.

    Returns:
        The path of the file, replaced in one piece.

    Raises:
        ImportError: plotly or jinja2 is missing.
        OSError: the file cannot be written; says which and why.
    """
    text = page(run)
    target = Path(path) / "report.html" if Path(path).is_dir() else Path(path)
    try:
        _write(target, text)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write the page to {target} ({error.strerror}); name another file"
        ) from error
    return target


def page(run: Run) -> str:
    """The same as a text."""
    shown = environment()
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs().replace("</script", "<\\/script")
    return str(shown.get_template("template.html.j2").render(**content(run), library=library))


def environment() -> Any:
    """What the templates beside this file are rendered by: every text is escaped and printable.

    Raises:
        ImportError: plotly or jinja2 is missing.
    """
    try:
        import jinja2
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(f'a page needs {error.name}: pip install "eqtoolbox[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
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
    return {
        "title": run.path.resolve().name,
        "facts": list(_facts(run)),
        "findings": wrong[:ON_TOP],
        "more": [*wrong[ON_TOP:], *(f for f in findings if f.level == "note")],
        "good": [f for f in findings if f.level == "good"],
        "loss": training_panel(run),
        "sections": sections(run, run.topics),
        "costs": _costs(run),
        "events": run.events[-EVENTS:],
        "left_out": max(0, len(run.events) - EVENTS),
        "values": [_latest(run, name) for name in run.names()],
        "versions": " · ".join(
            f"{name} {run.info[name]}"
            for name in ("eqtoolbox", "torch", "python")
            if name in run.info
        ),
    }


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


def _costs(run: Run) -> list[dict[str, Any]]:
    """One row a probe: what was measured, what was missed, what it took."""
    status: dict[str, Counter[str]] = {}
    for (probe, word), steps in run.attempts().items():
        if probe not in NO_PROBES:
            status.setdefault(probe, Counter())[word] = steps
    rows, left_out = [], skipped(run)
    for probe, count in sorted(status.items()):
        seconds = trace(run, f"cost/seconds/{probe}")
        products = trace(run, f"cost/matvecs/{probe}")
        row = {"probe": probe, "measured": count["ok"], "skipped": left_out.get(probe, 0)}
        row |= {"unconverged": count["not_converged"], "inapplicable": count["not_applicable"]}
        row["failed"] = count["failed"] + count["non_finite"]
        row["seconds"] = f"{number(float(arrays(seconds)[1].mean()))} s" if seconds else ""
        row["products"] = f"{arrays(products)[1].sum():,.0f}" if products else ""
        rows.append(row)
    return rows


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
