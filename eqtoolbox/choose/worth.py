"""The gate: which claims are worth a trial, by what data and model say of them."""

from eqtoolbox.choose.suggestion import Outcome, Suggestion
from eqtoolbox.symmetry.asymmetry import DataAsymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.result import EquivarianceResult

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
