"""The audit: which symmetries a trained model and its data have, ranked, from a configuration file.

[audit]
source = "mine.py:build"     # or "package.module:build"; build() -> (model, inputs[, targets])
samples = 8                  # group elements of each candidate, the identity among them
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.isolation import evaluation, isolated
from eqtoolbox.source import named
from eqtoolbox.symmetry.actions import trivial
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.symmetry.asymmetry import DataAsymmetry, data_asymmetry
from eqtoolbox.symmetry.candidates import Score, candidates, rank
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import culprit, summary


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a configuration names."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor | None
    samples: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Candidates of a model, ranked; its continuous symmetries when the inputs are vectors."""

    scores: tuple[Score, ...]
    culprits: dict[str, str]  # first broken layer in words, by the name of a violated candidate
    algebra: Discovery | None  # None for images and long vectors
    data: dict[str, DataAsymmetry]  # by the name of a candidate; none for fewer than 8 samples


def load(config: str | Path) -> Subject:
    """Model, data and samples that a configuration names.

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
    if not isinstance(samples, int) or samples < 2:
        raise ValueError(f"{path}: audit.samples must be an integer >= 2, got {samples!r}")
    build = named(str(options["source"]), path.parent, f"{path}: audit.source")
    if not callable(build):
        raise ValueError(f"{path}: {options['source']} must be a function, got {build!r}")
    built = build()
    sound = isinstance(built, tuple) and len(built) in (2, 3) and isinstance(built[0], nn.Module)
    if not sound or not all(isinstance(part, Tensor) for part in built[1:]):
        raise ValueError(
            f"{path}: {options['source']} must return (model, inputs tensor) or "
            "(model, inputs, targets)"
        )
    targets = built[2] if len(built) == 3 else None
    return Subject(model=built[0], inputs=built[1], targets=targets, samples=samples)


def audit(
    model: nn.Module, inputs: Tensor, targets: Tensor | None = None, *, samples: int = 8
) -> Audit:
    """Score the candidate symmetries of a model and its data, leaving no trace.

    The model is in evaluation mode; the data are compared with their transformed selves, targets
    included where they are classes or values like the outputs.

    Args:
        model: inputs -> one tensor.
        inputs: (batch, ...), floating point.
        targets: classes (batch,), or values like the outputs; None for the inputs alone.
        samples: group elements of each candidate, the identity among them.

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
    data = {
        s.symmetry.name: found
        for s in scores
        if (found := _data(inputs, targets, outputs, s.symmetry)) is not None
    }
    return Audit(scores=tuple(scores), culprits=blame, algebra=algebra, data=data)


def _data(
    inputs: Tensor, targets: Tensor | None, outputs: Tensor, symmetry: Equivariance
) -> DataAsymmetry | None:
    """The data's own asymmetry, with the targets where the output action can move them."""
    if targets is not None and targets.shape != outputs.shape:
        classes = targets.dim() == 1 and not targets.is_floating_point()
        targets = targets if classes and symmetry.output_action is trivial else None
    try:
        return data_asymmetry(inputs, targets, symmetry)
    except (ValueError, TypeError, RuntimeError, LookupError):
        return None


def text(found: Audit) -> str:
    """The audit as a table."""
    head = f"{'candidate':32} {'model':11} {'error':>9} {'floor':>9} {'of output':>9}"
    lines = [f"{head}  {'data':11} {'distance':>9} {'floor':>9}"]
    for score in found.scores:
        r, name = score.result, score.symmetry.name
        if r is None:
            lines.append(f"{name:32} {'-':11} {score.note}")
            continue
        row = f"{name:32} {r.verdict:11} {r.relative_error:9.2g} {r.floor:9.2g} "
        row += f"{r.orbit_variance:9.2g}"
        d = found.data.get(name)
        if d is not None:
            row += f"  {d.verdict:11} {d.coefficient:9.2g} {d.floor:9.2g}"
        lines.append(row)
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
                **_of_data(found.data.get(score.symmetry.name)),
                **{k: v if v == v and abs(v) != float("inf") else None for k, v in numbers.items()},
                "note": found.culprits.get(score.symmetry.name) or score.note,
            }
        )
    return rows


def _of_data(d: DataAsymmetry | None) -> dict[str, Any]:
    if d is None:
        return {}
    return {
        "data_verdict": d.verdict,
        "data_distance": d.coefficient,
        "data_floor": d.floor,
        "data_p_value": d.p_value,
    }
