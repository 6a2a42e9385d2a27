"""The command line: `eqtoolbox demo | summary RUN | report RUN | audit CONFIG | check CONFIG`."""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("eqtoolbox: interrupted; what was measured is kept", file=sys.stderr)
        return 130
    except BaseException as error:  # whatever a file or the code of a user does: words, no trace
        from eqtoolbox.command.blame import blame

        print(f"eqtoolbox: {blame(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eqtoolbox", description="See how a network learns through its symmetries."
    )
    parser.add_argument("--version", action="version", version=f"eqtoolbox {version('eqtoolbox')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="train small networks on a real problem (digits unless named) and explain them"
    )
    demo.add_argument("name", metavar="NAME", nargs="?", default="digits", help="see --list")
    demo.add_argument("--list", action="store_true", help="print the names of all demos")
    demo.add_argument("--run-dir", type=_path, help="directory for the run (default: a new one)")
    demo.add_argument("--steps", type=int, help="optimizer steps (default: the demo's own)")
    demo.add_argument("--json", action="store_true", help="print findings as JSON")
    demo.set_defaults(run=_demo)

    summary = commands.add_parser("summary", help="findings and numbers of a run, in the terminal")
    summary.add_argument("path", metavar="RUN", type=_path)
    summary.add_argument("--json", action="store_true", help="print as JSON")
    _probes(summary)
    summary.set_defaults(run=_summary)

    report = commands.add_parser("report", help="the run as one self-contained HTML page")
    report.add_argument("path", metavar="RUN", type=_path)
    report.add_argument("-o", "--output", type=_path, help="file (default: RUN/report.html)")
    _probes(report)
    report.set_defaults(run=_report)

    audit = commands.add_parser("audit", help="rank the symmetries that a trained model obeys")
    audit.add_argument("config", metavar="CONFIG", type=_path, help="a TOML file with [audit]")
    audit.add_argument("--json", action="store_true", help="print as JSON")
    audit.set_defaults(run=_audit)

    check = commands.add_parser("check", help="check a configuration and print it resolved")
    check.add_argument("config", metavar="CONFIG", help="a TOML file or a preset's name")
    check.add_argument("--json", action="store_true", help="print as JSON")
    check.add_argument(
        "--no-import",
        action="store_true",
        help="run no code that the file names: check package.module:NAME for its form only",
    )
    check.set_defaults(run=_check)

    found = commands.add_parser("symmetries", help="parameter symmetries of a model, verified")
    found.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:name or file.py:name (a model, or a function that returns one, "
        "(model, batch), (model, inputs, targets) or (model, batch, loss_fn)), or a TOML file with "
        "[symmetries]",
    )
    found.add_argument("--json", action="store_true", help="print as JSON")
    found.set_defaults(run=_symmetries)
    return parser


def _probes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--probes",
        type=_path,
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


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def _demo(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.demo import catalogue
    from eqtoolbox.command.demo.show import show

    if arguments.list:
        print(catalogue.listing())
        return
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps must be >= 1, got {arguments.steps}")
    demo = catalogue.demo(arguments.name)
    run_dir = arguments.run_dir or _fresh_directory(demo.name)
    shown = show(demo, run_dir, steps=arguments.steps, quiet=arguments.json)
    if arguments.json:
        _print_json(shown)


def _summary(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report import Run, summary_data, summary_text

    run = Run(arguments.path, topics=_topics(arguments.probes))
    if arguments.json:
        _print_json(summary_data(run))
    else:
        _say(summary_text(run))


def _report(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report import Run, write_page

    run = Run(arguments.path, topics=_topics(arguments.probes))
    _say(str(write_page(run, arguments.output or arguments.path).resolve()))


def _audit(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.audit_table import data, text
    from eqtoolbox.command.subject import load
    from eqtoolbox.symmetry.audit import audit

    subject = load(arguments.config)
    found = audit(
        subject.model,
        subject.inputs,
        subject.targets,
        samples=subject.samples,
        claims=subject.claims,
    )
    if arguments.json:
        _print_json(data(found))
    else:
        _say(text(found))


def _check(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.checking import described

    resolved = described(arguments.config, imports=not arguments.no_import)
    if arguments.json:
        _print_json(resolved)
        return
    for name, options in resolved.items():
        print(f"[{name}]")
        for key, value in options.items():
            _say(f"  {key} = {value}")


def _symmetries(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.model import load
    from eqtoolbox.weights import discover

    model, batch, loss_fn, remark = load(arguments.model)
    found = discover(model, batch, loss_fn)
    keys = ("family", "name", "dimension", "status", "residual")
    rows = [{key: getattr(symmetry, key) for key in keys} for symmetry in found]
    for row, symmetry in zip(rows, found, strict=True):  # NaN has no word in JSON
        row["epsilon"] = None if math.isnan(symmetry.epsilon) else symmetry.epsilon
    if arguments.json:
        _print_json(rows)
        return
    _say("\n".join(filter(None, (str(found), remark and f"note: {remark}"))))


def _say(text: str) -> None:
    """Print in the letters that the terminal has."""
    from eqtoolbox.report.words import printable

    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding))


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, allow_nan=False))


def _fresh_directory(demo: str) -> Path:
    """A directory below the current one that is not there yet."""
    word = "" if demo == "digits" else f"{demo}-"
    name = f"eqtoolbox-demo-{word}{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [Path(name), *(Path(f"{name}-{i}") for i in range(2, 100))]
    return next(path for path in candidates if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
