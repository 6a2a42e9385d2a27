"""The audit: which symmetries a trained model and its data have, ranked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from eqtoolbox.expect import notebook
from eqtoolbox.expect.bounds import count
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.isolation import evaluation, isolated
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.replay.reading import Reading, opened
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.symmetry.asymmetry import DataAsymmetry, data_asymmetry
from eqtoolbox.symmetry.candidates import Score, candidates, rank
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.culprit import Culprit, culprit
from eqtoolbox.symmetry.each import batch_of_one, one_sample
from eqtoolbox.symmetry.orbit import Function, told
from eqtoolbox.symmetry.structure import batch_size, floating, like_outputs, tensors

Samples = Annotated[int, count(2)]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Candidates of a model, ranked; its continuous symmetries when the inputs are vectors."""

    scores: tuple[Score, ...]
    culprits: dict[str, Culprit]  # first broken layer, by the name of a violated candidate
    algebra: Discovery | None  # None for images and long vectors
    data: dict[str, DataAsymmetry]  # by the name of a candidate; none for fewer than 8 samples

    def _repr_html_(self) -> str:
        rows = [
            (s.symmetry.name, r.verdict, r.relative_error, r.floor)
            if (r := s.result) is not None
            else (s.symmetry.name, "not applicable", "", "")
            for s in self.scores
        ]
        return notebook.table(rows, ("candidate", "verdict", "relative error", "floor"))


@checked
def audit(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    samples: Samples = 8,
    claims: Sequence[Claimed] = (),
) -> Audit:
    """Score the candidate symmetries of a model and its data, leaving no trace.

    The model is in evaluation mode; the data are compared with their transformed selves, targets
    included where they are classes or values like the outputs.

    Args:
        model: called as model(inputs), as model(*inputs) for a tuple, as model(**inputs) for a
            dict whose keys are its arguments; returns a tensor or a tree of tensors.
        inputs: (batch, ...), floating point, or a dict, tuple, list or dataclass of tensors that
            start with the batch size; claims see a dataclass as a dict. Nodes and edges of several
            graphs, as PyTorch Geometric batches them, are one sample: see `Equivariance.rows`.
        targets: classes (batch,), or values like the outputs; None for the inputs alone.
        samples: group elements of each candidate, the identity among them.
        claims: tried beside those that the shapes suggest, and listed instead where names agree.

    Raises:
        ValueError: no tensors in the inputs or outputs, or tensors of different batch sizes.

    Example:
        >>> x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = audit(pooled, x)
        >>> {s.symmetry.name for s in found.scores if s.result.verdict == "holds"} >= {
        ...     "cyclic4.invariant", "translation.invariant", "sign.odd"}
        True
    """
    single = isinstance(inputs, Tensor)
    function = model if single else Reading(model, inputs)
    tree, asked = opened(inputs), opened(targets)
    called = function.arguments if isinstance(function, Reading) else ()
    parts = _in_parts(tree, claims, called)
    if not tensors(tree) or (not parts and batch_size(tree) == 0):
        raise ValueError(f"inputs must hold at least one sample, got {type(inputs).__name__}")
    ask: Function = one_sample(function) if parts else function
    if parts:
        tree, asked = batch_of_one(tree), None
        claims = [replace(claim, rows="samples") for claim in claims]
    with evaluation(model), isolated(model):
        with torch.no_grad():
            outputs = opened(told(ask, tree))
        if not tensors(outputs):
            raise ValueError(f"the model must return tensors, got {type(outputs).__name__}")
        names = {claim.name for claim in claims}
        suggested = candidates(tree, outputs, called, parts)
        tried = [*claims, *(c for c in suggested if c.name not in names)]
        scores = rank(ask, tree, tried, samples=samples)
        blame = {
            s.symmetry.name: _blamed(function, tree, s.symmetry)
            for s in scores
            if s.result is not None and s.result.verdict == "violated" and not parts
        }
        small = single and inputs.dim() in (2, 3) and inputs.shape[-1] <= 16
        plain = small and isinstance(outputs, Tensor)
        algebra = discover_data(model, inputs) if plain else None
    data = {
        s.symmetry.name: found
        for s in scores
        if (found := _data(tree, asked, outputs, s.symmetry)) is not None
    }
    return Audit(scores=tuple(scores), culprits=blame, algebra=algebra, data=data)


def _in_parts(tree: Any, claims: Sequence[Equivariance], arguments: Sequence[str]) -> bool:
    """Whether rows are nodes and edges: as a claim says, or as it looks."""
    said = [claim.rows for claim in claims if claim.rows != "auto"]
    return in_parts(tree, said[0] if said else "auto", arguments)


def _blamed(function: nn.Module, inputs: Any, symmetry: Equivariance) -> Culprit:
    """The culprit, its layers by the names that the model knows them by."""
    try:
        found = culprit(function, inputs, symmetry)
    except (ValueError, TypeError, RuntimeError, LookupError) as reason:
        return Culprit(layer=None, cause=f"no layer to blame: {reason}", layers=(), floor=0.0)
    if not isinstance(function, Reading) or found.layer is None:
        return found
    return replace(found, layer=found.layer.removeprefix("model."))


def _data(inputs: Any, targets: Any, outputs: Any, symmetry: Equivariance) -> DataAsymmetry | None:
    """The data's own asymmetry, with the targets where the output action can move them."""
    classes = isinstance(targets, Tensor) and targets.dim() == 1 and not floating(targets)
    if not classes:
        targets = like_outputs(targets, outputs)
    elif symmetry.output_action is not trivial:
        targets = None
    try:
        return data_asymmetry(inputs, targets, symmetry)
    except (ValueError, TypeError, RuntimeError, LookupError):
        return None
