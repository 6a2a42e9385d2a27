"""The Gauss-Newton part of the sharpness."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eqtoolbox.linalg import EigenResult, gauss_newton
from eqtoolbox.linalg.vectors import dot
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot


def gauss_newton_share(snapshot: Snapshot, found: EigenResult) -> Iterator[Measurement]:
    """v^T G v / lambda at the top eigenvector: 1 when the model's own curvature plays no part.

    Raises:
        NotApplicable: there is no such share; says why.
    """
    objective, params = snapshot.objective, snapshot.before
    vector: Parameters = found.vectors[0]

    def of_output(y: Tensor) -> Tensor:
        return objective.loss_of_output(params, y, train=True)

    try:
        with torch.no_grad():
            whole, given = objective.loss(params), of_output(objective.outputs(params))
        if not torch.isclose(given, whole, rtol=1e-4, atol=0.0, equal_nan=True):
            raise LookupError("it reads what the model computes inside")
    except Exception as reason:  # whatever a loss does with an output that is handed to it
        why = f"the loss is no function of one output tensor ({reason})"
        raise NotApplicable(why) from reason
    top, residual = float(found.values[0]), float(found.residuals[0])
    if top == 0:
        raise NotApplicable("the largest curvature is 0, which has no parts")
    try:
        product = gauss_newton(objective.outputs, of_output, params)(vector)
    except (NotImplementedError, ValueError) as reason:
        raise NotApplicable(f"its product cannot be computed: {reason}") from reason
    share = dot(vector, product) / top
    yield Measurement(
        "gauss_newton_share",
        share,
        stderr=abs(share) * residual / abs(top),
        status="ok" if bool(found.converged[0]) else "not_converged",
        matvecs=1,
    )
