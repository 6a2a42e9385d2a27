"""The command line: `eqtoolbox demo | summary RUN | report RUN | audit CONFIG | check CONFIG`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqtoolbox import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError, LookupError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"eqtoolbox: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eqtoolbox: interrupted; what was measured is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eqtoolbox", description="See how a network learns through its symmetries."
    )
    parser.add_argument("--version", action="version", version=f"eqtoolbox {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small network on real digits and explain it")
    demo.add_argument("--run-dir", type=Path, help="directory for the run (default: a new one)")
    demo.add_argument("--steps", type=int, default=400, help="optimizer steps (default 400)")
    demo.add_argument("--json", action="store_true", help="print findings as JSON")
    demo.set_defaults(run=_demo)

    summary = commands.add_parser("summary", help="findings and numbers of a run, in the terminal")
    summary.add_argument("path", metavar="RUN", type=Path)
    summary.add_argument("--json", action="store_true", help="print as JSON")
    summary.set_defaults(run=_summary)

    report = commands.add_parser("report", help="the run as one self-contained HTML page")
    report.add_argument("path", metavar="RUN", type=Path)
    report.add_argument("-o", "--output", type=Path, help="file (default: RUN/report.html)")
    report.set_defaults(run=_report)

    audit = commands.add_parser("audit", help="rank the symmetries that a trained model obeys")
    audit.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file with [audit]")
    audit.add_argument("--json", action="store_true", help="print as JSON")
    audit.set_defaults(run=_audit)

    check = commands.add_parser("check", help="check a configuration and print it resolved")
    check.add_argument("config", metavar="CONFIG", help="a TOML file or a preset's name")
    check.add_argument("--json", action="store_true", help="print as JSON")
    check.set_defaults(run=_check)

    found = commands.add_parser("symmetries", help="parameter symmetries of a model, verified")
    found.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:name (a model, or a function that returns one, (model, batch) or "
        "(model, batch, loss_fn)), or a TOML file with [symmetries]",
    )
    found.add_argument("--json", action="store_true", help="print as JSON")
    found.set_defaults(run=_symmetries)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from eqtoolbox.demos import digits
    from eqtoolbox.report import Run, summary_data, write_page
    from eqtoolbox.sinks.live import LiveLine

    if arguments.steps < 1:
        raise ValueError(f"--steps must be >= 1, got {arguments.steps}")
    run_dir = arguments.run_dir or _fresh_directory()
    torch.set_num_threads(1)  # a small network gains nothing from more, and loses on a busy machine
    quiet = arguments.json
    if not quiet:
        print(f"Training a small convolutional network on 1,437 handwritten digits -> {run_dir}\n")
    with tqdm(total=arguments.steps, unit="step", leave=False, disable=quiet or None) as bar:
        accuracy = digits.train(
            steps=arguments.steps,
            run_dir=str(run_dir),
            sinks=() if quiet else (LiveLine(),),
            after_step=lambda *_: bar.update(),
        )
    run = Run(run_dir)
    page = write_page(run, run_dir / "report.html")
    if quiet:
        data = {"accuracy": accuracy, "run": str(run_dir), "report": str(page)}
        _print_json({**data, **summary_data(run)})
        return
    print(
        f"\nTest accuracy {accuracy:.1%}. What the monitor found, by medians of 5 measurements:\n"
    )
    print(findings_text(run))
    print(f"\nNumbers:  eqtoolbox summary {run_dir}\nReport:   {page.resolve()}")


def findings_text(run: Any) -> str:
    """Findings, one a line, marked by level."""
    marks = {"alarm": "!!", "warning": "! ", "note": "- ", "good": "ok"}
    return "\n".join(f"  {marks[f.level]} {f.text}" for f in run.findings())


def _summary(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report import Run, summary_data, summary_text

    run = Run(arguments.path)
    if arguments.json:
        _print_json(summary_data(run))
    else:
        print(summary_text(run))


def _report(arguments: argparse.Namespace) -> None:
    from eqtoolbox.report import Run, write_page

    run = Run(arguments.path)
    print(write_page(run, arguments.output or arguments.path / "report.html").resolve())


def _audit(arguments: argparse.Namespace) -> None:
    from eqtoolbox import audit

    model, inputs, samples = audit.load(arguments.config)
    found = audit.audit(model, inputs, samples=samples)
    if arguments.json:
        _print_json(audit.data(found))
    else:
        print(audit.text(found))


def _check(arguments: argparse.Namespace) -> None:
    from eqtoolbox.config import describe, resolve

    resolved = {s.probe.name: describe(s) for s in resolve(arguments.config)}
    if arguments.json:
        _print_json(resolved)
        return
    for name, options in resolved.items():
        print(f"[{name}]")
        for key, value in options.items():
            print(f"  {key} = {value}")


def _symmetries(arguments: argparse.Namespace) -> None:
    from eqtoolbox.symmetry import discover
    from eqtoolbox.symmetry.source import load

    model, batch, loss_fn, remark = load(arguments.model)
    found = discover(model, batch, loss_fn)
    keys = ("family", "name", "dimension", "status", "residual")
    rows = [{key: getattr(symmetry, key) for key in keys} for symmetry in found]
    if arguments.json:
        _print_json(rows)
        return
    width = max((len(str(row["name"])) for row in rows), default=4)
    print(f"{'family':15} {'name':{width}} {'dimension':>9} {'status':11} residual")
    for row in rows:
        print(
            f"{row['family']:15} {row['name']:{width}} {row['dimension']:>9} "
            f"{row['status']:11} {row['residual']:.1e}"
        )
    for note in filter(None, (remark, *getattr(found, "notes", ()))):
        print(f"note: {note}")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, allow_nan=False))


def _fresh_directory() -> Path:
    """A directory below the current one that is not there yet."""
    name = f"eqtoolbox-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [Path(name), *(Path(f"{name}-{i}") for i in range(2, 100))]
    return next(path for path in candidates if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
