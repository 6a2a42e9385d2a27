"""What did it cost: the time of the probes, and what was missed or failed."""

import math
from collections import Counter
from collections.abc import Iterator

from eqtoolbox.report.drawing import PALETTE, wide
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import NO_PROBES, Curve, arrays, skipped, trace, traces
from eqtoolbox.report.words import listing, number, percent, plural

ELSEWHERE = ("training/loss", "discrete/dead", "vital/")  # what other rules tell of
LIGHT = 0.1  # overhead that needs no remark when no budget was set
OVERDRAWN = 1.2  # times the budget: the token bucket may overshoot by one probe


def unanswered(run: Log) -> Iterator[Finding]:
    """Measurements that gave no number, by reason."""
    words = {"failed": "failed", "non_finite": "met NaN or infinite numbers"}
    words["skipped_memory"] = "did not fit into the memory that training leaves"
    words["not_converged"] = "did not converge and count as unmeasured"
    for status, happened in words.items():
        first, why, seen = None, "", set[tuple[int, str]]()
        everything = run.rows()
        for r in everything.where(everything.having(status)):
            if not r.name.startswith(ELSEWHERE) and (r.step, r.probe) not in seen:
                seen.add((r.step, r.probe))
                first, why = first or r, why or r.facts.text("why")
        if first is None:
            continue
        probes = Counter(probe for _, probe in sorted(seen)).most_common()
        what = listing([f"{count} {probe}" for probe, count in probes])
        what += " measurement" if len(seen) == 1 else " measurements"
        because = f": {why}" if why else ""
        yield Finding(
            level="note" if status in ("not_converged", "skipped_memory") else "warning",
            text=f"{what} {happened}, first at step {first.step}{because}.".replace("..", "."),
            evidence=(Evidence(name=first.name, step=first.step, value=math.nan),),
            id=f"measurements-{status.replace('_', '-')}",
        )


def cost(run: Log) -> Iterator[Finding]:
    """What share of the training time the probes took, and what the budget left out."""
    overhead, budget = trace(run, "cost/overhead"), run.info.get("budget")
    left_out, setup = sum(skipped(run).values()), trace(run, "cost/setup")
    due = left_out + sum(n for probe, n in run.tried().items() if probe not in NO_PROBES)
    spent, allowed = trace(run, "cost/spent"), trace(run, "cost/allowed")
    if spent is not None and allowed is not None:
        yield _settled(spent, allowed, setup, f"{left_out} of {due}" if left_out else "")
        return
    took = f"overhead {_share(overhead.last.value)}" if overhead else "overhead not recorded"
    if overhead and budget is not None:
        took += f", budget {percent(budget)}"
    once = f", set-up of {number(setup.last.value, 2)} s apart" if setup else ""
    evidence = tuple(t.latest() for t in (overhead, setup) if t is not None)
    if overhead and budget is not None and overhead.last.value > OVERDRAWN * budget:
        text = f"Probes overdrew their budget ({took}{once}): a run that takes longer than the one "
        text += "before overdraws it, and weighs less the longer the training."
        yield Finding(level="note", text=text, evidence=evidence)
    elif overhead and not left_out:
        share = _share(overhead.last.value) + (" of" if overhead.last.value < 2 else "")
        limit = "no budget was set" if budget is None else f"budget {percent(budget)}"
        text = f"Probes cost {share} the training time ({limit}){once}; no measurement was skipped."
        level: Level = "good" if budget is not None or overhead.last.value <= LIGHT else "note"
        yield Finding(level=level, text=text, evidence=evidence)
    if left_out:
        text = f"{left_out} of {plural(due, 'due measurement')} were skipped by the budget"
        yield Finding(level="note", text=f"{text} ({took}{once}).", evidence=evidence)


def _settled(spent: Curve, allowed: Curve, setup: Curve | None, left_out: str) -> Finding:
    """What the whole run took of what its budget allows."""
    took, may = spent.last.value, allowed.last.value
    text = f"The monitor took {number(took, 2)} s, its budget allows {number(may, 2)} s"
    once = f": set-up took {number(setup.last.value, 2)} s" if setup and took > may else ""
    rest = f"; {left_out} due measurements were left out, so that the rest are spread evenly"
    return Finding(
        level="good" if took <= may else "note",
        text=f"{text}{once}{rest if left_out else ''}.",
        evidence=tuple(t.latest() for t in (spent, allowed)),
    )


def incidents(run: Log) -> Iterator[Finding]:
    """Errors in the event log and lines that a kill tore."""
    errors = [e for e in run.events if e.get("kind") == "error"]
    if errors:
        first = errors[0]
        where = f"step {first.get('step')}, {first.get('probe') or 'monitor'}"
        text = f"{plural(len(errors), 'error')} in the event log; first ({where}): "
        text += str(first.get("message", "")).split("\n")[0]
        yield Finding(level="warning", text=text, id="errors")
    if run.torn:
        text = f"{plural(run.torn, 'line')} of the log could not be read and"
        was = "was" if run.torn == 1 else "were"
        yield Finding(
            level="note", text=f"{text} {was} left out (torn by a kill, or being written)."
        )


def _share(overhead: float) -> str:
    return percent(overhead) if overhead < 2 else f"{number(overhead, 2)}x"


def cost_panels(run: Log) -> Iterator[Panel]:
    """Seconds per probe and the overhead against its budget."""
    seconds = {p: float(arrays(t)[1].sum()) for p, t in traces(run, "cost/seconds").items()}
    if seconds:
        yield _seconds(dict(sorted(seconds.items(), key=lambda item: item[1])))
    overhead, budget = trace(run, "cost/overhead"), run.info.get("budget")
    if overhead is not None:
        shares = arrays(overhead)[1]
        plot = Plot(last_step=run.last_step, log=wide(shares), scale=100.0, suffix=" %")
        plot.line(overhead, "overhead", PALETTE[0])
        if budget is not None:
            plot.level(100 * budget, "budget")
        reading = "Time of the monitor so far, its set-up apart, as a share of the training time."
        yield plot.panel("overhead", "Overhead", reading)


def _seconds(seconds: dict[str, float]) -> Panel:
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(seconds),
        "x": [float(f"{s:.4g}") for s in seconds.values()],
        "text": [f"{number(s)} s" for s in seconds.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": PALETTE[0]},
        "hoverinfo": "skip",
        "width": 0.55,
    }
    room = 1.25 * max(seconds.values()) or 1.0  # for the number beside the longest bar
    layout = {
        "xaxis": {"title": {"text": "seconds"}, "range": [0, room]},
        "yaxis": {"automargin": True, "ticksuffix": "  ", "showgrid": False},
    }
    reading = "Time that each probe took over the whole run."
    figure = {"data": [bars], "layout": layout}
    return Panel(slug="seconds", title="Seconds per probe", reading=reading, figure=figure)


TOPIC = Topic(
    question="What did it cost?",
    slug="cost",
    explanation="The time of every probe beside that of the training, and what the budget or "
    "a failure left out.",
    remedy=(
        "read the first message in events.jsonl: it names what the probe met",
        "switch the probe off by every(0) if it does not fit this model",
    ),
    rules=(unanswered, cost, incidents),
    panels=(cost_panels,),
    probes=("cost",),
)
