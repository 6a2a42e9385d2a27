"""A TOML file as tables, or an error that names the file and what is wrong with it."""

import tomllib
from pathlib import Path
from typing import Any


def tables(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ValueError: it cannot be read, or is no TOML.

    Example:
        >>> tables(Path("nowhere.toml"))
        Traceback (most recent call last):
        ValueError: nowhere.toml: cannot be read: No such file or directory
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: brackets nested too deep to read") from None
