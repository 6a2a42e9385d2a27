"""Any function `log(numbers, step=...)`: of Accelerate, Lightning loggers, or your own."""

from collections.abc import Callable
from typing import Any

from eqtoolbox.sinks.scalars import Scalars


class CallableSink(Scalars):
    """Calls `function(numbers, step=step)` once a measured step.

    Example:
        >>> from eqtoolbox.record.record import Record
        >>> sink = CallableSink(lambda numbers, step: print(step, numbers))
        >>> sink.write(Record(step=3, name="training/loss", value=0.5))
        >>> sink.flush()
        3 {'eqtoolbox/training/loss': 0.5}
    """

    def __init__(self, function: Callable[..., Any], **how: Any) -> None:
        super().__init__(**how)
        self._function = function

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._function(numbers, step=step)
