"""Objects that a command or a configuration names: `package.module:NAME`, or `file.py:NAME`."""

import difflib
import importlib
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eqtoolbox.attach.toml import ConfigError


def named(reference: str, folder: Path, said: str) -> Any:
    """The object that a reference stands for; the module or file is run to get it.

    Args:
        reference: "package.module:NAME", or "file.py:NAME".
        folder: that files and modules of the user are looked for in.
        said: where the reference was given, for messages, such as "a.toml: audit.source".

    Raises:
        ConfigError: no such file, module or name; says the remedy.

    Example:
        >>> named("math:pi", Path(), "here")
        3.141592653589793
    """
    where, name = split(reference, said)
    with _found_first(folder):
        file = folder / where
        if where.endswith(".py") and not file.exists():
            raise ConfigError(f"{said}: no file {file}; paths are relative to {folder}")
        try:
            run = where.endswith(".py")
            names = runpy.run_path(str(file)) if run else vars(importlib.import_module(where))
        except (ImportError, SyntaxError) as error:
            raise ConfigError(
                f"{said}: {where} cannot be imported: {error}; write 'package.module:NAME' or "
                "'file.py:NAME'"
            ) from error
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{said}: {where} has no {name!r}{hint}")
    return names[name]


def split(reference: str, said: str) -> tuple[str, str]:
    """Module or file, and name, of a reference; nothing is run.

    Raises:
        ConfigError: it has neither form.

    Example:
        >>> split("package.module:NAME", "here")
        ('package.module', 'NAME')
    """
    where, _, name = reference.rpartition(":")
    module = where.endswith(".py") or all(
        part.replace("-", "_").isidentifier() for part in where.split(".")
    )
    if not module or not name.isidentifier():
        raise ConfigError(
            f"{said}: expected 'package.module:NAME' or 'file.py:NAME', got {reference!r}"
        )
    return where, name


@contextmanager
def _found_first(folder: Path) -> Iterator[None]:
    """Scope in which modules of this folder can be imported."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
