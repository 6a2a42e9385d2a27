"""Objects that a configuration names: `package.module:NAME`, or `file.py:NAME` beside it."""

import importlib
import runpy
from pathlib import Path
from typing import Any


def named(reference: str, config: Path, key: str) -> Any:
    """The object that a reference stands for; the module or file is run to get it.

    Args:
        reference: "package.module:NAME", or "file.py:NAME", relative to the folder of the file.
        config: the configuration file, for relative paths and messages.
        key: where the reference stands in it.

    Raises:
        ValueError: no such file, module or name; says the remedy.

    Example:
        >>> named("math:pi", Path("here.toml"), "audit.source")
        3.141592653589793
    """
    where, _, name = reference.partition(":")
    if where.endswith(".py"):
        file = config.parent / where
        if not file.exists():
            raise ValueError(f"{config}: no file {file}; {key} is relative to the config")
        names = runpy.run_path(str(file))
    else:
        try:
            names = vars(importlib.import_module(where))
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{config}: {key}: {error}; write 'package.module:NAME' or 'file.py:NAME'"
            ) from error
    if name not in names:
        raise ValueError(f"{config}: {where} has no {name!r}; {key} names 'file.py:NAME'")
    return names[name]
