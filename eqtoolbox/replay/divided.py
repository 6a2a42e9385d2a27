"""Divided: whether the loss of a batch is the mean of the losses of its pieces."""

import math

import torch

from eqtoolbox.replay.objective import Objective, Parameters

SMALL = 0.01  # of the largest entry of a tensor, up to which it may not matter where it is


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


def elsewhere(params: Parameters) -> Parameters:
    """A point in general position, near enough for a loss to be finite.

    Only what is not at random is moved, zeros, constants and small numbers that a training begins
    with: the rest of a large model needs no copy.
    """
    rng = torch.Generator().manual_seed(0)
    found = dict(params)
    for n, p in params.items():
        low, high = p.detach().aminmax() if p.numel() else (p, p)
        size = max(abs(float(low)), abs(float(high))) if p.numel() else 0.0
        spread = size > SMALL and bool(low < high) and int(p.count_nonzero()) == p.numel()
        if p.numel() == 0 or spread:
            continue
        found[n] = p + torch.randn(p.shape, generator=rng).to(p) * (0.1 * size + 0.03)
    return found
