"""The audit: which symmetries a trained model has, ranked, from a configuration file.

[audit]
source = "mine.py:build"     # or "package.module:build"; build() -> (model, inputs)
samples = 8                  # group elements of each candidate
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.isolation import evaluation, isolated
from eqtoolbox.source import named
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.symmetry.candidates import Score, candidates, rank
from eqtoolbox.symmetry.culprit import culprit, summary


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Candidates of a model, ranked; its continuous symmetries when the inputs are vectors."""

    scores: tuple[Score, ...]
    culprits: dict[str, str]  # first broken layer in words, by the name of a violated candidate
    algebra: Discovery | None  # None for images and long vectors


def load(config: str | Path) -> tuple[nn.Module, Tensor, int]:
    """Model, inputs and samples that a configuration names.

    Raises:
        ValueError: file or key missing, or the source returns something else; says the remedy.
    """
    path = Path(config)
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    options = table.get("audit")
    known = {"source", "samples"}
    if not isinstance(options, dict) or "source" not in options or options.keys() - known:
        raise ValueError(f'{path}: expected a table [audit] with source = "file.py:function"')
    samples = options.get("samples", 8)
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"{path}: audit.samples must be an integer >= 1, got {samples!r}")
    build = named(str(options["source"]), path, "audit.source")
    if not callable(build):
        raise ValueError(f"{path}: {options['source']} must be a function, got {build!r}")
    built = build()
    if (
        not isinstance(built, tuple)
        or len(built) != 2
        or not isinstance(built[0], nn.Module)
        or not isinstance(built[1], Tensor)
    ):
        raise ValueError(f"{path}: {options['source']} must return (model, inputs tensor)")
    return built[0], built[1], samples


def audit(model: nn.Module, inputs: Tensor, *, samples: int = 8) -> Audit:
    """Score the candidate symmetries of a model on inputs, in evaluation mode, leaving no trace.

    Args:
        model: inputs -> one tensor.
        inputs: (batch, ...), floating point.
        samples: group elements of each candidate.

    Example:
        >>> x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = audit(pooled, x)
        >>> {s.symmetry.name for s in found.scores if s.result.verdict == "holds"} >= {
        ...     "cyclic4.invariant", "translation.invariant", "sign.odd"}
        True
    """
    with evaluation(model), isolated(model):
        with torch.no_grad():
            outputs = model(inputs)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"the model must return one tensor, got {type(outputs).__name__}")
        scores = rank(model, inputs, candidates(inputs, outputs), samples=samples)
        blame = {
            s.symmetry.name: summary(culprit(model, inputs, s.symmetry))
            for s in scores
            if s.result is not None and s.result.verdict == "violated"
        }
        small = inputs.dim() in (2, 3) and inputs.shape[-1] <= 16
        algebra = discover_data(model, inputs) if small else None
    return Audit(scores=tuple(scores), culprits=blame, algebra=algebra)


def text(found: Audit) -> str:
    """The audit as a table."""
    lines = [f"{'candidate':32} {'verdict':11} {'error':>9} {'floor':>9} {'of output':>9}"]
    for score in found.scores:
        r, name = score.result, score.symmetry.name
        if r is None:
            lines.append(f"{name:32} {'-':11} {score.note}")
            continue
        lines.append(
            f"{name:32} {r.verdict:11} {r.relative_error:9.2g} {r.floor:9.2g} "
            f"{r.orbit_variance:9.2g}"
        )
        why = found.culprits.get(name) or score.note
        if why:
            lines.append(f"{'':32} {why}")
    if found.algebra is not None:
        a = found.algebra
        known = a.name or a.note
        lines.append(f"continuous: {known} (gap {a.gap:.2g}, shuffled {a.null_gap:.2g})")
    return "\n".join(lines)


def data(found: Audit) -> list[dict[str, Any]]:
    """The audit as JSON values, in rank order."""
    rows = []
    for score in found.scores:
        r = score.result
        numbers = (
            {"relative_error": r.relative_error, "floor": r.floor, "stderr": r.stderr} if r else {}
        )
        rows.append(
            {
                "candidate": score.symmetry.name,
                "verdict": r.verdict if r else "not_applicable",
                **{k: v if v == v and abs(v) != float("inf") else None for k, v in numbers.items()},
                "note": found.culprits.get(score.symmetry.name) or score.note,
            }
        )
    return rows
