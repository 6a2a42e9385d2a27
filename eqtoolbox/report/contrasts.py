"""Contrasts: tables of several runs, one column a run: what differs, and who keeps which law."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eqtoolbox.record.record import HOLDS, verdict
from eqtoolbox.report.comparison import changed, values
from eqtoolbox.report.log import Log
from eqtoolbox.report.run import Run
from eqtoolbox.report.topics.charges import drifts
from eqtoolbox.report.trace import NO_PROBES, Curve, traces
from eqtoolbox.report.words import number, plural, symmetry, words

Table = dict[str, Any]  # title, columns, rows of texts, numeric: by column; folded
TOP = 12  # differences that are not folded
ROWS = 500  # of a table
LONG = 60  # letters of an option
LEAVES = 2000  # options of a run that are looked at
_OWN = ("started", "finished", "owner", "format", "segments", "symmetries")  # nobody's choice


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: bool = False,
    folded: bool = False,
) -> Table:
    """A table for the page; `numbers`: the columns behind the first hold them."""
    left = len(rows) - ROWS
    shown = [list(row) for row in rows[:ROWS]]
    title += f" ({plural(left, 'row')} more are left out)" if left > 0 else ""
    numeric = [False, *[numbers] * (len(columns) - 1)]
    return {
        "title": title, "columns": list(columns), "rows": shown, "numeric": numeric,
        "folded": folded,
    }  # fmt: skip


def options(runs: Sequence[Log], names: Sequence[str]) -> Iterator[Table]:
    """What run.json says of the runs that is not the same in all."""
    told = [dict(_leaves(run.info)) for run in runs]
    keys = dict.fromkeys(key for leaves in told for key in leaves)
    rows = [[key, *(leaves.get(key, "–") for leaves in told)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        yield table("How the runs differ", ["", *names], rows)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Options by their places, as texts."""
    todo = [(place, value)]
    count = 0
    while todo and count < LEAVES:
        where, found = todo.pop()
        inner: Any = ()
        if isinstance(found, Mapping):
            inner = [(k, v) for k, v in found.items() if where or k not in _OWN]
        elif isinstance(found, list):
            inner = enumerate(found)
        else:
            count += 1
            said = found if isinstance(found, str) else json.dumps(found)
            yield where, said if len(said) <= LONG else f"{said[:LONG]}…"
        todo += reversed([(f"{where}.{k}".lstrip("."), v) for k, v in inner])


def differences(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Table]:
    """What a comparison calls a difference, the clearest first, and folded all the rest."""
    compared = values(runs)
    columns = ["name", *names, "± of a difference"]
    rows = {name: _cells(name, row) for name, row in compared.items()}
    differ = [name for name, row in compared.items() if row["differs"]]
    differ.sort(key=lambda name: _size(compared[name]), reverse=True)
    clearest = {"/".join(name.split("/")[:2]): name for name in reversed(differ)}
    measured = [name for name in differ if name.split("/")[0] not in NO_PROBES[1:]]
    top = [name for name in measured if name in clearest.values()][:TOP]
    if top:
        title = "The clearest differences of each kind, the largest in multiples of its error first"
        yield table(title, columns, [rows[name] for name in top], numbers=True)
    rest = [name for name in differ if name not in top]
    alike = [name for name in rows if name not in differ]
    for title, some in (
        (f"{plural(len(rest), 'further name')} that differ", rest),
        (f"{plural(len(alike), 'name')} that do not differ beyond the errors", alike),
    ):
        if some:
            yield table(title, columns, [rows[name] for name in some], numbers=True, folded=True)


def _size(row: Mapping[str, Any]) -> float:
    """The largest difference to the first run in errors; 0 where no error is known."""
    first, sizes = row["errors"][0] or 0.0, [0.0]
    for d, e in zip(row["differences"], row["errors"], strict=True):
        if d and (error := math.hypot(first, e or 0.0)):
            sizes.append(abs(d) / error)
    return max(sizes)


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    cells = []
    for place, value in enumerate(row["values"]):
        beyond = row["within"][place] is False
        by = f" ({changed(row, place)})" if beyond else ""
        cells.append("–" if value is None else f"{number(value)}{by}")
    errors = [e for e in row["errors"] if e is not None]
    return [name, *cells, number(HOLDS * math.hypot(*errors), 2) if errors else ""]


def keeping(runs: Sequence[Log], names: Sequence[str]) -> Iterator[Table]:
    """Who keeps which data symmetry: its error, floor and verdict in every run."""
    found = [traces(run, "equivariance/relative_error") for run in runs]
    yield from _kept("Who keeps the symmetry", "symmetry under", names, found, symmetry)


def conserving(runs: Sequence[Log], names: Sequence[str]) -> Iterator[Table]:
    """Whose charges are conserved, and whose gradient obeys the law that conserves them."""
    found = [drifts(run) for run in runs]
    yield from _kept("Whose charges are conserved", "drift of", names, found, words)
    laws = [traces(run, "noether/first_order") for run in runs]
    title = "Whose gradient obeys the law"
    yield from _kept(title, "first-order law of", names, laws, words)


def _kept(
    title: str,
    what: str,
    names: Sequence[str],
    found: Sequence[Mapping[str, Curve]],
    said: Callable[[str], str],
) -> Iterator[Table]:
    targets = dict.fromkeys(target for curves in found for target in curves)
    rows = [[said(t), *(_cell(curves.get(t)) for curves in found)] for t in targets]
    if rows:
        yield table(title, [what, *names], rows)


def _cell(t: Curve | None) -> str:
    """Level, floor and verdict; a floor decides where no verdict was recorded."""
    if t is None:
        return "not measured"
    floor = "" if t.floor is None else f", floor {number(t.floor, 2)}"
    told = t.verdict or (verdict(abs(t.now), t.floor) if t.floor else "no floor")
    return f"{told}: {number(t.now, 2)}{floor}"
