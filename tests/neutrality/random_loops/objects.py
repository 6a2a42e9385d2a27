"""Memories in objects, in classes and in what belongs to the process."""

import contextvars
import dataclasses
import logging
import os
import threading
import warnings
import weakref
from typing import Any

from torch import Tensor

from tests.neutrality.random_loops.piece import Memory, memory

STEP = 0
LOGGER = logging.getLogger("random loops")
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)


class UserWarns(UserWarning):
    """A warning of the user's own code."""


@memory("attribute")
class Attribute(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def remember(self, x: Tensor) -> float:
        self.calls += 1
        return 0.1 * self.calls


@memory("attribute that comes late")
class Late(Memory):
    def remember(self, x: Tensor) -> float:
        self.last = getattr(self, "last", 0.0) + float(x.mean()) + 0.1
        return self.last


@memory("warning")
class Warns(Attribute):
    def remember(self, x: Tensor) -> float:
        warnings.warn("the user's model warns", UserWarns, stacklevel=2)
        return super().remember(x)


@memory("helper object")
class Helper(Memory):
    class Average:
        def __init__(self) -> None:
            self.value = 0.1

        def __call__(self, x: Tensor) -> float:
            self.value = 0.9 * self.value + 0.1 * float(x.mean()) + 0.01
            return self.value

    def __init__(self) -> None:
        super().__init__()
        self.average = self.made()

    def made(self) -> Any:
        return Helper.Average()

    def remember(self, x: Tensor) -> float:
        return self.average(x)


@memory("object with slots")
class Slotted(Helper):
    class Slots:
        __slots__ = ("seen", "value")

        def __init__(self) -> None:
            self.value, self.seen = 0.1, []

        def __call__(self, x: Tensor) -> float:
            self.value += 0.1 + float(x.mean())
            self.seen.append(self.value)
            return self.value

    def made(self) -> Any:
        return Slotted.Slots()


@memory("dataclass")
class Data(Helper):
    @dataclasses.dataclass
    class State:
        count: int = 0
        means: list[float] = dataclasses.field(default_factory=list)

        def __call__(self, x: Tensor) -> float:
            self.count += 1
            self.means.append(float(x.mean()))
            return 0.1 * self.count + self.means[-1]

    def made(self) -> Any:
        return Data.State()


@memory("frozen dataclass rebound")
class Frozen(Memory):
    @dataclasses.dataclass(frozen=True)
    class State:
        count: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.state = Frozen.State()

    def remember(self, x: Tensor) -> float:
        self.state = dataclasses.replace(self.state, count=self.state.count + 1)
        return 0.1 * self.state.count


@memory("class attribute", shared=True)
class OfClass(Memory):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        OfClass.calls = 0

    def remember(self, x: Tensor) -> float:
        OfClass.calls += 1
        return 0.1 * OfClass.calls

    def look(self) -> Any:
        return OfClass.calls


@memory("list of the class", shared=True)
class Registry(Memory):
    seen: list[float] = []  # noqa: RUF012 - shared on purpose

    def __init__(self) -> None:
        super().__init__()
        Registry.seen.clear()

    def remember(self, x: Tensor) -> float:
        Registry.seen.append(float(x.mean()) + 0.1)
        return sum(Registry.seen)

    def look(self) -> Any:
        return Registry.seen


@memory("global", shared=True)
class Global(Memory):
    def __init__(self) -> None:
        global STEP
        super().__init__()
        STEP = 0

    def remember(self, x: Tensor) -> float:
        global STEP
        STEP += 1
        return 0.1 * STEP

    def look(self) -> Any:
        return STEP


@memory("context variable", shared=True)
class Context(Memory):
    def __init__(self) -> None:
        super().__init__()
        VARIABLE.set(0)

    def remember(self, x: Tensor) -> float:
        VARIABLE.set(VARIABLE.get() + 1)
        return 0.1 * VARIABLE.get()

    def look(self) -> Any:
        return VARIABLE.get()


@memory("environment", shared=True)
class Environment(Memory):
    def __init__(self) -> None:
        super().__init__()
        os.environ["RANDOM_LOOPS_CALLS"] = "0"

    def remember(self, x: Tensor) -> float:
        os.environ["RANDOM_LOOPS_CALLS"] = str(int(os.environ["RANDOM_LOOPS_CALLS"]) + 1)
        return 0.1 * int(os.environ["RANDOM_LOOPS_CALLS"])

    def look(self) -> Any:
        return os.environ["RANDOM_LOOPS_CALLS"]


@memory("weak references", copies=False)
class Weak(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def remember(self, x: Tensor) -> float:
        self.calls[self] = self.calls.get(self, 0) + 1
        return 0.1 * self.calls[self]


@memory("logger", shared=True)
class Logger(Memory):
    """Writes to a log that somebody reads."""

    class Lines(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(record.getMessage())

    def __init__(self) -> None:
        super().__init__()
        LOGGER.handlers, LOGGER.propagate = [Logger.Lines()], False

    def remember(self, x: Tensor) -> float:
        LOGGER.error("mean %.3f", float(x.mean()))
        return 0.1 * len(self.look())

    def look(self) -> Any:
        return LOGGER.handlers[0].lines


@memory("lock and count", copies=False)
class Locked(Attribute):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.seen = threading.Lock(), [0]

    def remember(self, x: Tensor) -> float:
        with self.lock:
            self.seen[0] += 1
            return 0.1 * self.seen[0]
