"""TensorBoard."""

from typing import Any

from eqtoolbox.sinks.scalars import Scalars


class TensorBoardSink(Scalars):
    """Writes each number as a scalar of a `SummaryWriter`, which stays the caller's to close."""

    def __init__(self, writer: Any) -> None:
        super().__init__()
        self._writer = writer

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        super().close()
        self._writer.flush()
