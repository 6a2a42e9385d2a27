"""Scaling: by how much a gradient scaler multiplied the loss of the step being taken."""

import sys
from typing import Any

import torch


def gradient_scale() -> float:
    """The scale of the torch GradScaler whose `step` is calling the optimizer; 1 without one.

    A scaler calls `optimizer.step` itself, so that it is found on the call stack; the optimizer
    does not know it, and gradients are unscaled before or inside the step.
    """
    amp = sys.modules.get("torch.amp.grad_scaler")
    frame = sys._getframe(1)
    while amp is not None and frame is not None:
        if frame.f_code.co_name in ("step", "_maybe_opt_step"):
            scaler = frame.f_locals.get("self")
            if isinstance(scaler, amp.GradScaler) and scaler.is_enabled():
                return float(scaler.get_scale())
        frame = frame.f_back  # type: ignore[assignment]
    return 1.0


def scale_inside(optimizer: Any) -> float:
    """The scale that a fused optimizer is about to take out of its gradients itself; else 1.

    A scaler tells it by `grad_scale`, for as long as the step takes and unless the loop had
    unscaled the gradients before.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if isinstance(scale, torch.Tensor) else 1.0
