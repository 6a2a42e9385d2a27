"""Divided: whether the loss of a batch is the mean of the losses of its pieces."""

import math

import torch

from eqtoolbox.replay.objective import Objective, Parameters


def apart(objective: Objective, params: Parameters, parts: int) -> tuple[float, str]:
    """|mean of the pieces' losses - L| / |L| and a sentence that says so.

    Infinite, with the reason, where a batch cannot be cut or its loss takes no piece of it.

    Args:
        objective: L, the loss of the whole batch.
        params: where.
        parts: how many pieces; each counts by its samples.
    """
    try:
        with torch.no_grad():
            whole = float(objective.loss(params))
            pieces = objective.split(parts)
            total = sum(weight for _, weight in pieces)
            mean = sum(weight * float(piece.loss(params)) for piece, weight in pieces) / total
    except Exception as error:  # whatever a user's loss says to a smaller batch
        lines = str(error).strip().splitlines()
        return math.inf, lines[0][:160] if lines else type(error).__name__
    found = abs(mean - whole) / max(abs(whole), 1e-30)
    return found, f"the loss of the batch is {found:.1e} off the mean of its pieces"
