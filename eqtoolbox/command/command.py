"""A command: its name, its arguments and what it does; and how answers are printed."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Command:
    """One word of the command line."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]  # adds them
    run: Callable[[argparse.Namespace], int | None]  # the exit code; None is 0
    more: str = ""  # below the options in --help


def path(text: str) -> Path:
    """A path that is not empty, as the type of an argument."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def count(text: str) -> int:
    """A number of things, at least one, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A time above zero, as the type of an argument."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return found


def port(text: str) -> int:
    """A port, as the type of an argument."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def as_json(parser: argparse.ArgumentParser) -> None:
    """Let the answer be asked for as JSON."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def say(text: str) -> None:
    """Print in the letters that the terminal has."""
    from eqtoolbox.report.words import printable

    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), flush=True)


def print_json(data: Any, indent: int | None = 1) -> None:
    """Print strict JSON."""
    print(json.dumps(data, indent=indent, allow_nan=False), flush=True)
