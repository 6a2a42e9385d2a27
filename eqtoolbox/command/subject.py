"""The subject of an audit: model, data and claims that a configuration file names.

[audit]
source = "mine.py:build"     # or "package.module:build"; build() -> (model, inputs[, targets])
samples = 8                  # group elements of each candidate, the identity among them
symmetries = ["mine.py:CLAIM"]   # claims of your own, tried beside those that the shapes suggest
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from eqtoolbox.attach.source import named
from eqtoolbox.attach.toml import tables
from eqtoolbox.expect.fit import fitted
from eqtoolbox.replay.reading import opened
from eqtoolbox.symmetry.audit import Samples
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.structure import tensors


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a configuration names."""

    model: nn.Module
    inputs: Any  # (batch, ...), or a dict, tuple, list or dataclass of tensors that share the batch
    targets: Any  # classes, or values like the outputs; None
    samples: int
    claims: tuple[Equivariance, ...] = ()


def load(config: str | Path) -> Subject:
    """Model, data and samples that a configuration names.

    Raises:
        ValueError: file or key missing, or the source returns something else; says the remedy.
    """
    path = Path(config)
    source, samples, claims = options(path)
    build = named(source, path.parent, f"{path}: audit.source")
    if not callable(build):
        raise ValueError(f"{path}: {source} must be a function, got {build!r}")
    built = build()
    sound = isinstance(built, tuple) and len(built) in (2, 3) and isinstance(built[0], nn.Module)
    if not sound or not all(tensors(opened(part)) for part in built[1:]):
        raise ValueError(
            f"{path}: {source} must return (model, inputs) or (model, inputs, targets), "
            "inputs and targets being tensors or dicts, tuples, lists or dataclasses of tensors"
        )
    return Subject(
        model=built[0],
        inputs=built[1],
        targets=built[2] if len(built) == 3 else None,
        samples=samples,
        claims=_claims(claims, path),
    )


def options(path: Path) -> tuple[str, int, list[str]]:
    """Source, samples and symmetries of the table [audit]; no code that they name is run.

    Raises:
        ValueError: the file, the table or one of its values is none.
    """
    table = tables(path).get("audit")
    known = ("source", "samples", "symmetries")
    if not isinstance(table, dict) or "source" not in table or table.keys() - {*known}:
        odd = sorted(table.keys() - {*known}) if isinstance(table, dict) else []
        raise ValueError(
            f'{path}: expected a table [audit] with source = "file.py:function"'
            + (f" and no more than {', '.join(known)}, got {', '.join(odd)}" if odd else "")
        )
    samples = fitted(f"{path}: audit.samples", table.get("samples", 8), Samples)
    entries = table.get("symmetries", [])
    if not isinstance(entries, list) or not all(isinstance(e, str) and ":" in e for e in entries):
        raise ValueError(
            f'{path}: audit.symmetries must be a list such as ["mine.py:CLAIM"], got {entries!r}'
        )
    return str(table["source"]), samples, entries


def _claims(entries: list[str], path: Path) -> tuple[Equivariance, ...]:
    claims = tuple(named(entry, path.parent, f"{path}: audit.symmetries") for entry in entries)
    for entry, claim in zip(entries, claims, strict=True):
        if not isinstance(claim, Equivariance):
            raise ValueError(f"{path}: {entry} must be an Equivariance, got {claim!r}")
    return claims
