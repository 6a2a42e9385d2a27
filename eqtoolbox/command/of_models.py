"""Commands that look at a model or train one: demo, audit, suggest, check, symmetries, plan."""

import argparse
import math
import time
from pathlib import Path

from eqtoolbox.command.command import Command, as_json, path, print_json, say
from eqtoolbox.command.demo.collecting import seldom


def _of_demo(demo: argparse.ArgumentParser) -> None:
    name = demo.add_argument("name", metavar="NAME", nargs="?", default="digits", help="see --list")
    name.completer = _demos  # type: ignore[attr-defined]
    demo.add_argument("--list", action="store_true", help="print the names of all demos")
    demo.add_argument("--run-dir", type=path, help="directory for the run (default: a new one)")
    demo.add_argument("--steps", type=int, help="optimizer steps (default: the demo's own)")
    as_json(demo)


def _of_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("config", metavar="CONFIG", type=path, help="a TOML file with [audit]")
    as_json(audit)


def _of_suggest(advice: argparse.ArgumentParser) -> None:
    advice.add_argument(
        "config",
        metavar="CONFIG",
        type=path,
        help="a TOML file with [audit], whose source returns (model, inputs, targets), and perhaps "
        "[suggest]",
    )
    advice.add_argument("--page", metavar="FILE", type=path, help="write the report page, too")
    as_json(advice)


def _of_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("config", metavar="CONFIG", help="a TOML file or a preset's name")
    as_json(check)
    check.add_argument(
        "--no-import",
        action="store_true",
        help="run no code that the file names: check package.module:NAME for its form only",
    )


def _of_symmetries(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:name or file.py:name (a model, or a function that returns one, "
        "(model, batch), (model, inputs, targets) or (model, batch, loss_fn)), or a TOML file with "
        "[symmetries]",
    )
    as_json(found)


def _of_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "config", metavar="CONFIG", nargs="?", type=path, help="a TOML file with [plan]"
    )
    plan.add_argument("--parameters", metavar="N", type=float, help="such as 7e9")
    plan.add_argument("--model", metavar="MODEL", help="in their place, as `symmetries` takes one")
    plan.add_argument("--ranks", metavar="W", type=int, help="processes (1)")
    plan.add_argument("--sharding", choices=("ddp", "fsdp2", "hsdp"), help="(ddp)")
    plan.add_argument("--precision", choices=("fp32", "bf16"), help="of training (bf16)")
    plan.add_argument("--probe-precision", choices=("full", "as_trained"), help="(full)")
    plan.add_argument("--samples", metavar="B", type=int, help="of a rank (1)")
    plan.add_argument("--tokens", metavar="T", type=int, help="of a sample (2048)")
    plan.add_argument("--probe-batch", metavar="PART", type=float, help="of a rank's batch (1.0)")
    plan.add_argument("--optimizer", help="(AdamW)")
    plan.add_argument(
        "--checkpointing", action="store_true", default=None, help="blocks are computed twice"
    )
    plan.add_argument("--memory", metavar="GIB", type=float, help="of a device (80)")
    plan.add_argument("--every", metavar="STEPS", type=int, help="between measurements (100)")
    as_json(plan)


def _demos(**_: object) -> list[str]:
    """Names of demos, for completion."""
    from eqtoolbox.command.demo.catalogue import DEMOS

    return list(DEMOS)


@seldom()
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
        print_json(shown)


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
        print_json(data(found))
    else:
        say(text(found))


def _suggest(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.advice import advised, data

    found = advised(arguments.config)
    written = None
    if arguments.page is not None:
        from eqtoolbox.command.advice_page import content
        from eqtoolbox.report.page import publish

        shown = content(found, arguments.config.stem)
        written = publish(shown, arguments.page, "suggested.html")
    if arguments.json:
        print_json(data(found))
        return
    say("\n".join([str(found), *([f"page: {written}"] if written else [])]))


def _check(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.checking import described

    resolved = described(arguments.config, imports=not arguments.no_import)
    if arguments.json:
        print_json(resolved)
        return
    for name, options in resolved.items():
        print(f"[{name}]")
        for key, value in options.items():
            say(f"  {key} = {value}")


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
        print_json(rows)
        return
    say("\n".join(filter(None, (str(found), remark and f"note: {remark}"))))


def _plan(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.plan.asked import KEYS, asked
    from eqtoolbox.command.plan.printed import data, text

    flags = {key: getattr(arguments, key, None) for key in KEYS}
    training = asked(arguments.config, flags)
    if arguments.json:
        print_json(data(training))
    else:
        say(text(training))


def _fresh_directory(demo: str) -> Path:
    """A directory below the current one that is not there yet."""
    word = "" if demo == "digits" else f"{demo}-"
    name = f"eqtoolbox-demo-{word}{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [Path(name), *(Path(f"{name}-{i}") for i in range(2, 100))]
    return next(path for path in candidates if not path.exists())


COMMANDS = (
    Command(
        name="demo",
        help="train small networks on a real problem (digits unless named) and explain them",
        arguments=_of_demo,
        run=_demo,
    ),
    Command(
        name="audit",
        help="rank the symmetries that a trained model obeys",
        arguments=_of_audit,
        run=_audit,
    ),
    Command(
        name="suggest",
        help="which symmetry a model would gain by, judged on held-out samples",
        arguments=_of_suggest,
        run=_suggest,
    ),
    Command(
        name="check",
        help="check a configuration and print it resolved",
        arguments=_of_check,
        run=_check,
    ),
    Command(
        name="symmetries",
        help="parameter symmetries of a model, verified",
        arguments=_of_symmetries,
        run=_symmetries,
    ),
    Command(
        name="plan",
        help="what each probe takes of memory and time at a size, before anything runs there",
        arguments=_of_plan,
        run=_plan,
        more="Flags come before what CONFIG says; configs/plan has examples of 1B, 7B and 70B.",
    ),
)
