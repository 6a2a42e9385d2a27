"""A TOML file as tables, or an error that names the file and what is wrong with it."""

import tomllib
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A configuration cannot be read; the message names file, key and remedy."""


def tables(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: it cannot be read, or is no TOML.

    Example:
        >>> tables(Path("nowhere.toml"))
        Traceback (most recent call last):
        eqtoolbox.attach.toml.ConfigError: nowhere.toml: cannot be read: No such file or directory
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: brackets nested too deep to read") from None
