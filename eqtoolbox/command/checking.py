"""Checking: what a configuration says, table by table, resolved and ready to be printed."""

from pathlib import Path
from typing import Any

from eqtoolbox.attach.config import resolve
from eqtoolbox.attach.entry import describe
from eqtoolbox.attach.source import named, split
from eqtoolbox.attach.toml import tables


def described(config: str, *, imports: bool = True) -> dict[str, dict[str, Any]]:
    """Options by probe, and those of [audit], [suggest] and [symmetries] where a file has them.

    Args:
        config: a TOML file, or the name of a preset.
        imports: look up what `package.module:NAME` and `file.py:NAME` stand for, which runs the
            code of the module or file. Without, references are checked for their form only and
            marked "(not imported)"; no code is run.

    Raises:
        ValueError: what is wrong, with file, key and remedy.

    Example:
        >>> list(described("light"))
        ['equivariance', 'conservation']
    """
    from eqtoolbox.command.model import reference
    from eqtoolbox.command.subject import options

    path = Path(config)
    data = tables(path) if path.suffix == ".toml" else {}
    found: dict[str, dict[str, Any]] = {}
    if "probes" in data or not {"audit", "symmetries"} & data.keys():
        found = {s.probe.name: describe(s) for s in resolve(config, imports=imports)}
    if "audit" in data:
        source, samples, claims = options(path)
        found["audit"] = {
            "source": _looked_up(source, path, "audit.source", imports),
            "samples": samples,
            "symmetries": [_looked_up(c, path, "audit.symmetries", imports) for c in claims],
        }
    if "suggest" in data:
        from eqtoolbox.command.advice import options as asked

        found["suggest"] = asked(path)
    if "symmetries" in data:
        source = _looked_up(reference(path), path, "symmetries.source", imports)
        found["symmetries"] = {"source": source}
    return found


def _looked_up(reference: str, path: Path, key: str, imports: bool) -> str:
    """The reference as it is printed."""
    if imports:
        named(reference, path.parent, f"{path}: {key}")
        return reference
    split(reference, f"{path}: {key}")
    return f"{reference} (not imported)"
