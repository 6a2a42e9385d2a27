"""The files of a run directory: checked, and read as far as they are whole."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def require_run(path: Path) -> None:
    """Check that a path is a run directory.

    Raises:
        FileNotFoundError: there is nothing; the message names what is near.
        NotADirectoryError: it is a file.
        ValueError: the directory holds no run.
    """
    if not path.exists():
        parent = path.absolute().parent
        neighbours = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise FileNotFoundError(f"no run directory {str(path)!r}; {nearest(path.name, neighbours)}")
    if not path.is_dir():
        raise NotADirectoryError(f"expected the directory of a run, got the file {str(path)!r}")
    if not any((path / file).exists() for file in ("run.json", "records.jsonl")):
        inside = sorted(p.parent.name for p in path.glob("*/records.jsonl"))
        hint = f"runs are in {', '.join(inside)}" if inside else "was it written by run_dir=?"
        raise ValueError(
            f"{str(path)!r} is no run directory: expected run.json or records.jsonl in it; {hint}"
        )


def rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """JSON objects of a file of lines, None for each line that a kill tore.

    A missing file has no lines; the file may still be growing.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in filter(bytes.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield row if isinstance(row, dict) else None


def facts(path: Path) -> dict[str, Any] | None:
    """What run.json says: nothing when it is missing, None when it cannot be read."""
    try:
        found = json.loads((path / "run.json").read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def nearest(word: str, words: list[str]) -> str:
    """A hint at what may have been meant.

    Example:
        >>> nearest("curvature/sharpnes", ["curvature/sharpness", "training/loss"])
        "did you mean 'curvature/sharpness'?"
        >>> nearest("x", ["training/loss"])
        'there is: training/loss'
    """
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(w) for w in close)}?"
    if not words:
        return "there are none"
    shown = sorted(words)[:8]
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return f"there {'is' if len(words) == 1 else 'are'}: {', '.join(shown)}{more}"
