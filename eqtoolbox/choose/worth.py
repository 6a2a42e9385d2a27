"""The gate: which claims are worth a trial, by what data and model say of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eqtoolbox.choose.suggestion import Outcome, Suggestion
from eqtoolbox.symmetry.asymmetry import DataAsymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree, tensors

LARGEST = 64  # elements of a group that is looked at for smaller ones inside
REFUSED = 0.01  # p-value of the data's asymmetry up to which a claim is refused


def judged(
    claim: Equivariance,
    model: EquivarianceResult | None,
    data: DataAsymmetry | None,
    note: str = "",
) -> Suggestion:
    """A claim before its trial: refused, kept already, not to be tried, or open.

    Args:
        claim: that is asked.
        model: how far the model is from it; None where it does not act on inputs and outputs.
        data: how far inputs and targets together are from it; None where it does not act on them.
        note: why there is no result.
    """

    def row(outcome: Outcome, why: str) -> Suggestion:
        return Suggestion(claim=claim, way="", outcome=outcome, data=data, model=model, note=why)

    if model is None:
        return row("refused", f"it does not act on inputs and outputs: {note}")
    if data is None:
        return row("refused", "it does not act on inputs and targets")
    if data.p_value <= REFUSED:
        return row(
            "refused",
            f"the data do not have it: distance {data.coefficient:.2g} to their moved selves, by "
            f"chance up to {data.floor:.2g} (p = {data.p_value:.3f})",
        )
    if model.verdict == "holds":
        return row("kept", "the model has it by construction")
    if not claim.group.uniform or not claim.group.invertible:
        return row("not tried", f"{claim.group.name} has no uniform measure to average over")
    return row("not tried", "")


def is_open(row: Suggestion) -> bool:
    """Whether a claim is to be tried."""
    return row.outcome == "not tried" and not row.note


def with_subgroups(rows: Sequence[Suggestion], inputs: Tree, targets: Tree) -> list[Suggestion]:
    """Rows of which those are refused, too, that contain a claim which the data do not have.

    A test of a whole group may miss what one of its elements shows: most of its draws are others.

    Args:
        rows: judged.
        inputs, targets: two samples, on which actions are compared.
    """
    images: dict[str, list[list[Tensor]]] = {}
    for row in rows:
        claim, order = row.claim, row.claim.group.order
        if row.data is not None and order is not None and order <= LARGEST:
            images[claim.name] = [
                [*tensors(claim.input_action(g, inputs)), *tensors(claim.output_action(g, targets))]
                for g in claim.group.elements()
                if g != claim.group.identity
            ]
    lacking = [row for row in rows if row.data is not None and row.data.p_value <= REFUSED]
    return [_without(row, lacking, images) if is_open(row) else row for row in rows]


def _without(
    row: Suggestion, lacking: Sequence[Suggestion], images: dict[str, list[list[Tensor]]]
) -> Suggestion:
    own = images.get(row.claim.name, [])
    for other in lacking:
        theirs = images.get(other.claim.name)
        if theirs and all(any(_same(a, b) for b in own) for a in theirs):
            assert other.data is not None
            why = f"it contains {other.claim.name}, which the data do not have"
            return replace(row, outcome="refused", note=f"{why} (p = {other.data.p_value:.3f})")
    return row


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))
