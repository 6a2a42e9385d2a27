"""Ranks: several processes as one world, in step or not at all."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from eqtoolbox.expect.deadline import uncounted
from eqtoolbox.world.control import Control, packed
from eqtoolbox.world.failures import code_of, raised_by
from eqtoolbox.world.world import Retired, World

T = TypeVar("T")


class Ranks(World):
    """Processes that average their gradients.

    Before each exchange of data all ranks tell over the control plane what they are about to
    exchange, how much of it, and whether one of them failed: so that a rank that fails leaves none
    waiting, ranks that are not in step are seen before they mix numbers, and no exchange begins of
    which a rank is missing.

    Args:
        control: between these ranks.
        backend: of the group for data, such as "nccl".
    """

    def __init__(self, control: Control, backend: str = "gloo") -> None:
        self.rank, self.size = control.rank, len(control.ranks)
        self._control = control
        self._data = control.group(backend)
        self._failed: BaseException | None = None  # on another rank, in this scope
        self._inside = self._asunder = 0
        self._count = 0  # exchanges so far
        self.exchanged: dict[str, int] = {}  # how often what was

    @property
    def retired(self) -> str:  # type: ignore[override]
        return self._control.retired

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        if self._inside or self._asunder:
            yield
            return
        self._ready(f"begin {what}")
        self._inside = 1
        try:
            yield
            if self._failed is None:
                self._ready(f"end {what}")
        except Retired:
            raise
        except BaseException as error:
            if self._failed is None and not self.retired:
                self._tell(what, error)
            raise
        finally:
            self._inside, self._failed = 0, None

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._asunder += 1
        try:
            yield
        finally:
            self._asunder -= 1

    @property
    def inside(self) -> bool:
        return bool(self._inside) and not self._asunder

    def decided(self, what: str, numbers: Sequence[float]) -> list[float]:
        if self._asunder or not numbers:
            return list(numbers)
        self._ready(what, len(numbers))
        with uncounted():
            return self._control.of_first(numbers)

    def most(self, what: str, numbers: Sequence[float]) -> list[float]:
        if self._asunder or not numbers:
            return list(numbers)
        self._ready(what, len(numbers))
        with uncounted():
            return self._control.largest(numbers)

    def of_first(self, what: str, make: Callable[[], T]) -> T:
        if self._asunder:
            return make()
        self._ready(f"begin {what}")
        topic = f"made/{self._count}"
        value = None
        if self.first:
            try:
                with self.alone():
                    value = make()
            finally:
                self._control.say(topic, what)
        else:
            with self._waiting():
                self._control.await_first(topic)
        self._ready(what)
        with uncounted():
            return self._control.value_of_first(value)  # type: ignore[return-value]

    def each(self, what: str, value: T) -> list[T]:
        if self._asunder:
            return [value]
        self._ready(what)
        with uncounted():
            return self._control.value_of_each(value)  # type: ignore[return-value]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not self.inside:
            raise RuntimeError("expected an exchange inside of `together`, got one outside")
        found: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            chosen = [k for k, t in enumerate(tensors) if t.dtype == dtype]
            flat = packed([tensors[k] for k in chosen])
            self._ready(f"sum of {dtype}", flat.numel())
            with uncounted():
                dist.all_reduce(flat, group=self._data)
            parts = flat.split_with_sizes([tensors[k].numel() for k in chosen])
            shaped = zip(chosen, parts, strict=True)
            found |= {k: part.view(tensors[k].shape) for k, part in shaped}
        return [found[k] for k in range(len(tensors))]

    def retire(self, why: str) -> None:
        self._control.retire(f"rank {self.rank} {why}")

    def close(self, why: str = "closed its monitor") -> None:
        self.retire(why)

    def _ready(self, what: str, count: int = 0) -> None:
        """All ranks are about to do the same.

        Raises:
            OtherRank: one of them failed instead.
            Retired: they are not about to do the same, or one does not answer.
        """
        if self._failed is not None:  # of which somebody here took no notice
            raise self._failed
        self._meet(what, float(zlib.crc32(what.encode())), float(count), 0.0)

    def _tell(self, what: str, error: BaseException) -> None:
        """This rank failed: the others are told, in the place of what they wait for."""
        self._control.say(f"failed/{self._count}", f"{type(error).__name__}: {error}"[:500])
        self._meet(f"failure of {what}", -1.0, -1.0, float(code_of(error)))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Scope of what takes as long as the slowest rank does something else."""
        started = perf_counter()
        try:
            with uncounted():
                yield
        finally:
            self.waited += perf_counter() - started

    def _meet(self, what: str, label: float, count: float, code: float) -> None:
        self._control.check()
        number, self._count = float(self._count), self._count + 1
        kind = what.partition(" at step ")[0]
        self.exchanged[kind] = self.exchanged.get(kind, 0) + 1
        mine = [code, number, -number, label, -label, count, -count]
        with self._waiting():
            seen = self._control.largest(mine)
        if code:
            return
        if seen[0]:
            words = self._control.said(f"failed/{int(number)}")
            self._failed = raised_by(int(seen[0]), words)
            raise self._failed
        if any(high != -low for high, low in zip(seen[1::2], seen[2::2], strict=True)):
            self._control.retire(self._control.apart(int(number), f"{what} ({count:g} numbers)"))
            raise Retired(self.retired)


def data_backend(device: torch.device) -> str:
    """The backend of a group for tensors of this device."""
    return "nccl" if device.type == "cuda" else "gloo"
