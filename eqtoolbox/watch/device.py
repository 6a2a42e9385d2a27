"""The device: whether it works on its own, waiting for it, and how long it took."""

import gc
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def synchronize(model: nn.Module) -> None:
    """Wait for the accelerator, so that clocks tell what was really spent."""
    device = next((p.device for p in model.parameters()), None)
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def works_apart(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all of these are on one CUDA device, so that the host need not wait for it."""
    devices = {t.device for t in tensors.values()}
    return len(devices) == 1 and devices.pop().type == "cuda"


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


class Timer:
    """Times what is launched until `stop`: how long that took, or the device was busy with it.

    Example:
        >>> timer = Timer(torch.device("cpu"))
        >>> timer.stop()
        >>> 0 <= timer.seconds() < 1
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, list[torch.cuda.Event]()
        self._mark()
        self._started, self._seconds = time.perf_counter(), 0.0

    def stop(self) -> None:
        """Everything was launched."""
        self._mark()
        self._seconds = time.perf_counter() - self._started

    def seconds(self) -> float:
        """The longer of the two; the device is waited for."""
        if not self._marks:
            return self._seconds
        first, last = self._marks
        last.synchronize()
        return max(self._seconds, 1e-3 * float(first.elapsed_time(last)))

    def _mark(self) -> None:
        if self._device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record(torch.cuda.current_stream(self._device))
            self._marks.append(mark)
