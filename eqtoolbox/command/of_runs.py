"""Commands that read runs, without torch: summary, report, compare, tail, export, explain."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqtoolbox.command.command import Command, as_json, count, path, print_json, say


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", type=path, help="the directory of a run")


def _homes(paths: Sequence[Path]) -> Sequence[Path]:
    """Paths without the pages that lie among runs, as in runs/*."""
    return [p for p in paths if p.suffix != ".html" or not p.is_file()] or paths


def _only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help='a record, what names begin with ("curvature", "conservation/drift") or a pattern '
        '("*/rescale"); may be given several times',
    )


def _probes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probes",
        type=path,
        metavar="CONFIG",
        help="the TOML file of the run, for the topics of probes of your own (imports them)",
    )


def _topics(config: Path | None) -> tuple[Any, ...]:
    """What probes of the user's own ask of a run: of a file that is named, never of the run."""
    if config is None:
        return ()
    from eqtoolbox.attach.config import resolve
    from eqtoolbox.watch.probe import topics

    return topics(resolve(config))


def _of_summary(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    _only(parser)
    parser.add_argument(
        "--top",
        metavar="N",
        type=count,
        help="at most N findings, the gravest, and N names: first what is violated or has no "
        "number, then what rises or falls",
    )
    parser.add_argument(
        "--fail-on",
        choices=("note", "warning", "alarm"),
        help="exit with 1 if a finding of this level or a graver one is there (among those that "
        "--only asks for)",
    )
    as_json(parser)
    _probes(parser)


def _summary(arguments: argparse.Namespace) -> int:
    from eqtoolbox.report.run import Run
    from eqtoolbox.report.selection import LEVELS
    from eqtoolbox.report.terminal import as_text, summary_data

    run = Run(arguments.path, topics=_topics(arguments.probes))
    data = summary_data(run, only=arguments.only, top=arguments.top)
    if arguments.json:
        print_json(data)
    else:
        say(as_text(data))
    if arguments.fail_on is None:
        return 0
    bar = LEVELS.index(arguments.fail_on)
    return int(any(LEVELS.index(f["level"]) >= bar for f in data["findings"]))


def _of_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        metavar="RUN",
        type=path,
        nargs="+",
        help="the directory of a run; those of several runs give one page of all",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        help="file (default: RUN/report.html; of several runs compared.html in the nearest "
        "directory that holds them all)",
    )
    as_json(parser)
    _probes(parser)


def _report(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report.page import write_page
    from eqtoolbox.report.run import Run

    topics = _topics(arguments.probes)
    runs = [Run(p, topics=topics) for p in _homes(arguments.paths)]
    target = arguments.output or os.path.commonpath([run.path.resolve() for run in runs])
    page = str(write_page(runs, target).resolve())
    if arguments.json:
        print_json({"page": page})
    else:
        say(page)


def _of_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="RUN", type=path, nargs="+", help="the directories of two or more runs"
    )
    _only(parser)
    parser.add_argument("--top", metavar="N", type=count, help="at most N names")
    parser.add_argument("--all", action="store_true", help="also names that do not differ")
    as_json(parser)


def _compare(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report.comparison import comparison_data, comparison_text
    from eqtoolbox.report.run import Run

    homes = _homes(arguments.paths)
    if len(homes) < 2:
        raise ValueError("compare needs two runs or more, got one; `summary` shows a single run")
    data = comparison_data([Run(p) for p in homes], only=arguments.only)
    if arguments.json:
        print_json(data)
    else:
        say(comparison_text(data, every=arguments.all, top=arguments.top))


def _of_tail(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument(
        "-n", "--lines", metavar="N", type=count, default=10, help="records to begin with (10)"
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on as records are written, to the run's end"
    )
    _only(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _tail(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report.following import following, line, newest

    def tell(record: Any) -> None:
        print_json(record.to_json(), None) if arguments.json else say(line(record))

    records, end = newest(arguments.path, arguments.lines, arguments.only)
    for record in records:
        tell(record)
    if not records and not arguments.follow:
        print(f"eqtoolbox: no record in {str(arguments.path)!r}", file=sys.stderr)
    for record in following(arguments.path, end, arguments.only) if arguments.follow else ():
        tell(record)


def _of_export(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument(
        "--to",
        default="csv",
        choices=("csv", "parquet", "sqlite"),
        help='default: csv; parquet needs pyarrow: pip install "eqtoolbox[parquet]"',
    )
    parser.add_argument("-o", "--output", type=path, help="file (default: RUN/records.csv, ...)")
    as_json(parser)


def _export(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report.exporting import export
    from eqtoolbox.report.run import Run

    run = Run(arguments.path)
    target = arguments.output or arguments.path
    if target.is_dir():
        target = target / f"records.{arguments.to}"
    file = str(export(run, target, arguments.to).resolve())
    if arguments.json:
        print_json({"file": file, "records": len(run.rows())})
    else:
        say(file)


def _of_explain(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help='a record ("conservation/drift/rescale"), a word ("charge", "head rotation"), a probe '
        'or a column of a summary ("floor"); without, all records are listed',
    )
    name.completer = _explainable  # type: ignore[attr-defined]
    as_json(parser)


def _explainable(**_: object) -> list[str]:
    """What can be explained, for completion."""
    from eqtoolbox.report.explained import meanings
    from eqtoolbox.report.glossary import terms

    names = [m.pattern.split("<")[0].rstrip("/.") for m in meanings() if m.pattern[0] != "<"]
    return names + [t.pattern for t in terms()]


def _explain(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report.explained import explained, meanings, near
    from eqtoolbox.report.glossary import nearest, term

    name = arguments.name
    exact = explained(name) if name else None
    found = [exact] if exact else near(name) if name else list(meanings())
    known = term(name) if name and not exact else None
    literal = not name or exact or known or any(name in m.pattern for m in found)
    word = known if literal else nearest(name)
    found = found if literal or word is None else []
    if not found and word is None:
        raise KeyError(
            f"no record is named {name!r}; `eqtoolbox explain` lists those of the toolbox, and the "
            "docstring of a probe of your own tells of its records"
        )
    told = [*([word] if word else []), *found]
    if arguments.json:
        print_json([vars(m) | {"letters": m.letters} for m in told])
        return
    if name and not exact and not known and not any(name in m.pattern.split("/") for m in found):
        say(f"There is no record {name!r}; this is near:\n")
    if word is not None:
        say(f"{word}\n" if found else str(word))
    elif len(found) <= 3:
        say("\n\n".join(map(str, found)))
        return
    wide = max((len(m.pattern) for m in found), default=0)
    for m in found:
        say(f"{m.pattern:<{wide}}  {m.meaning}")


COMMANDS = (
    Command(
        name="summary",
        help="findings and numbers of a run, in the terminal",
        arguments=_of_summary,
        run=_summary,
        more="Exit codes: 0 done, 1 a finding as grave as --fail-on says, 2 the run cannot be "
        "read. `eqtoolbox explain floor` and the like tell what the columns mean.",
    ),
    Command(
        name="report",
        help="a run, or several beside each other, as one self-contained HTML page",
        arguments=_of_report,
        run=_report,
    ),
    Command(
        name="compare",
        help="two or more runs side by side, with what differs beyond the errors",
        arguments=_of_compare,
        run=_compare,
        more="Values are medians of the last five measurements. Two of them differ when they are "
        "further apart than 3 times their errors together: the recorded error or noise floor, or "
        "the scatter of the five.",
    ),
    Command(
        name="tail",
        help="the newest records of a run, also while it is written",
        arguments=_of_tail,
        run=_tail,
    ),
    Command(
        name="export",
        help="all records as a CSV, Parquet or SQLite file",
        arguments=_of_export,
        run=_export,
    ),
    Command(
        name="explain",
        help="what a record or a word means: formula, how to read it, source",
        arguments=_of_explain,
        run=_explain,
    ),
)
