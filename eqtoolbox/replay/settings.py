"""Settings: what torch and NumPy know for the whole process or thread, as a replay found it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_cudnn: Any = torch.backends.cudnn
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda held: torch.use_deterministic_algorithms(held[0], warn_only=held[1]),
    ),
    (lambda: _cudnn.benchmark, lambda held: setattr(_cudnn, "benchmark", held)),
    (lambda: _cudnn.deterministic, lambda held: setattr(_cudnn, "deterministic", held)),
    (lambda: _cudnn.allow_tf32, lambda held: setattr(_cudnn, "allow_tf32", held)),
    (np.geterr, lambda held: np.seterr(**held)),
)


class Settings:
    """Default type, threads, precisions, deterministic algorithms, floating-point errors."""

    def __init__(self) -> None:
        self.held = [get() for get, _ in _SETTINGS]

    def restore(self) -> None:
        """Set again what is otherwise now."""
        for (get, put), held in zip(_SETTINGS, self.held, strict=True):
            if get() != held:
                put(held)
