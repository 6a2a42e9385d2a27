"""A parcel: numbers that go from a device to the host together, while the device works on."""

from collections.abc import Callable

import torch
from torch import Tensor


class Parcel:
    """Takes numbers where they are, and brings all of them to the host in one copy.

    On CUDA that is a copy into pinned memory behind all work that was launched before it: nobody
    waits for the device until something is read. What is read before `send` is sent by that.

    Example:
        >>> parcel = Parcel()
        >>> one, two = parcel.add(torch.ones(2)), parcel.add(torch.tensor(True))
        >>> parcel.send()
        >>> one().tolist(), two().tolist()
        ([1.0, 1.0], 1.0)
    """

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._arrived: list[Tensor] = []  # of these, in order
        self._shapes: list[torch.Size] = []
        self._flat: Tensor | None = None  # on its way, or there
        self._event: torch.cuda.Event | None = None  # after which it is there

    def add(self, numbers: Tensor) -> Callable[[], Tensor]:
        """Take these along; what is returned gives them on the host, in float64.

        Raises:
            RuntimeError: the parcel was sent already.
        """
        if self._flat is not None or self._arrived:
            raise RuntimeError("the parcel was sent already; add numbers to another one")
        where = len(self._given)
        self._given.append(numbers.detach())
        return lambda: self._read()[where]

    def send(self) -> None:
        """Send everything off; calling it again does nothing."""
        given, self._given = self._given, []
        if not given:
            return
        home = next((x.device for x in given if x.device.type != "cpu"), given[0].device)
        self._shapes = [x.shape for x in given]
        wide = torch.float32 if home.type == "mps" else torch.float64  # all that there is
        flat = torch.cat([x.reshape(-1).to(home, wide) for x in given])
        if home.type == "cuda":
            self._flat = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._flat.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(home))
        else:
            self._flat = flat

    def _read(self) -> list[Tensor]:
        self.send()
        if self._flat is not None:
            if self._event is not None:
                self._event.synchronize()
            parts = torch.split(self._flat.cpu().double(), [s.numel() for s in self._shapes])
            self._arrived = [x.view(s) for x, s in zip(parts, self._shapes, strict=True)]
            self._flat = self._event = None
        return self._arrived
