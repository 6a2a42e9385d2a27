"""The control plane: short messages between ranks over a group of their own, with a time limit."""

import datetime
import json
import pickle
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eqtoolbox.world.world import Retired

START = 30.0  # seconds that ranks wait for each other to attach, at most
BRIEF = 5.0  # and where they waited for nobody the last time
LONG = 10  # times the patience: what the first rank may take for all
MOMENT = 2.0  # seconds that word of ranks that are there may take
OWN = "eqtoolbox"  # how groups are described that training does not know
SLICE = 0.5  # seconds after which a rank that waits looks whether another one has left
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function, which is another one in each process
_attached: dict[tuple[int, ...], int] = {}  # monitors so far, by the ranks they were for
_missed: set[tuple[int, ...]] = set()  # ranks of which not all attached the last time


class NotAttached(RuntimeError):
    """Not all ranks that train a model attach; says which do not."""


class Control:
    """Messages between the ranks of one monitor.

    Its group is its own: a collective of training's group that one rank alone runs would pair
    with training's next one, and replace an averaged gradient without an error. What ranks say
    beside it, when they part, lies in the store that they were started with.

    Args:
        ranks: of all processes, by their number in the default group.
        patience: seconds after which a rank that does not answer is given up.
        about: what must be the same on all ranks, such as their probes.

    Raises:
        NotAttached: another rank did not attach in time.
        ValueError: another rank attached something else; says what.
    """

    def __init__(self, ranks: Sequence[int], patience: float, about: Mapping[str, Any]) -> None:
        self.ranks, self.patience = tuple(ranks), patience
        self.rank = self.ranks.index(dist.get_rank())
        self.retired = ""
        count = _attached.get(self.ranks, 0) + 1
        spelled = "-".join(map(str, self.ranks))
        self._key = f"eqtoolbox/{zlib.crc32(spelled.encode())}/{count}"
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._limit = datetime.timedelta(seconds=patience)
        self._meet(about)
        _attached[self.ranks] = count
        self._group = self.group("gloo")

    def group(self, backend: str, ranks: Sequence[int] = ()) -> Any:
        """A new group of these ranks, or of some of them; all of those ask for it."""
        return dist.new_group(
            list(ranks or self.ranks),
            self._limit,
            backend=backend,
            use_local_synchronization=True,
            group_desc=OWN,
        )

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over the ranks."""
        message = torch.tensor(list(numbers), dtype=torch.float64)
        self._wait(dist.all_reduce(message, dist.ReduceOp.MAX, self._group, async_op=True))
        return message.tolist()

    def of_first(self, numbers: Sequence[float]) -> list[float]:
        """The numbers of the first rank."""
        message = torch.tensor(list(numbers), dtype=torch.float64)
        self._wait(dist.broadcast(message, self.ranks[0], self._group, async_op=True))
        return message.tolist()

    def value_of_first(self, value: object) -> object:
        """A value of the first rank, pickled."""
        held = pickle.dumps(value) if self.rank == 0 else b""
        count = int(self.of_first([float(len(held))])[0])
        message = torch.zeros(count, dtype=torch.uint8)
        if self.rank == 0:
            message = torch.frombuffer(bytearray(held), dtype=torch.uint8)
        self._wait(dist.broadcast(message, self.ranks[0], self._group, async_op=True))
        return pickle.loads(message.numpy().tobytes())

    def value_of_each(self, value: object) -> list[object]:
        """A value of every rank, pickled."""
        held = pickle.dumps(value)
        longest = int(self.largest([float(len(held))])[0]) + 8  # the length goes ahead
        message = torch.zeros(longest, dtype=torch.uint8)
        sent = len(held).to_bytes(8, "little") + held
        message[: len(sent)] = torch.frombuffer(bytearray(sent), dtype=torch.uint8)
        found = [torch.empty_like(message) for _ in self.ranks]
        self._wait(dist.all_gather(found, message, self._group, async_op=True))
        told = [x.numpy().tobytes() for x in found]
        return [pickle.loads(x[8 : 8 + int.from_bytes(x[:8], "little")]) for x in told]

    def await_first(self, topic: str) -> None:
        """Wait until the first rank has said something, however long as it did not leave.

        Raises:
            Retired: it left, or took more than `LONG` times the patience.
        """
        ends = time.monotonic() + LONG * self.patience
        while 0 not in self.said(topic):
            left = self.said("left")
            if left or time.monotonic() > ends:
                why = next(iter(left.values()), f"rank 0 took more than {LONG * self.patience:g} s")
                self.retire(why)
                raise Retired(self.retired)
            time.sleep(0.01)

    def say(self, topic: str, words: str) -> None:
        """Leave word for the others, under a topic and this rank."""
        self._store.set(f"{self._key}/{topic}/{self.rank}", words)

    def said(self, topic: str) -> dict[int, str]:
        """What ranks left under a topic, by rank; nothing where their store is gone."""
        keys = {r: f"{self._key}/{topic}/{r}" for r in range(len(self.ranks))}
        with suppress(RuntimeError):
            here = {r: k for r, k in keys.items() if self._store.check([k])}
            return {r: self._store.get(k).decode() for r, k in here.items()}
        return {}

    def retire(self, why: str) -> None:
        """Exchange nothing from now on, and let the others know why."""
        if not self.retired:
            self.retired = why
            with suppress(RuntimeError):  # the processes may be over, and their store with them
                self.say("left", why)

    def apart(self, number: int, what: str) -> str:
        """In words: which rank came to what, where they did not come to the same."""
        topic = f"came/{number}"
        self.say(topic, what)
        self._until_all(topic)
        came = "; ".join(f"rank {rank} came to {words}" for rank, words in self.said(topic).items())
        return f"ranks are not in step: {came}"

    def check(self) -> None:
        """Refuse to exchange anything where the ranks have parted.

        Raises:
            Retired: they have.
        """
        if self.retired:
            raise Retired(self.retired)

    def _wait(self, work: Any) -> None:
        """Until a collective is over, or somebody cannot take part in it.

        Raises:
            Retired: a rank left, or does not answer.
        """
        ends, ended = time.monotonic() + self.patience, False
        while True:
            try:
                work.wait(datetime.timedelta(seconds=SLICE))
                return
            except RuntimeError as error:
                failed, ended = ended, work.is_completed()
                if ended and not failed:  # just after it was waited for, or by an error of its own
                    continue
                if not ended and time.monotonic() < ends and not self.said("left"):
                    continue
                self.retire(self._why(error))
                raise Retired(self.retired) from error

    def _why(self, error: Exception) -> str:
        """Which rank left or does not answer, and what is known of it."""
        left = self.said("left")
        if left:
            rank, why = next(iter(left.items()))
            return why if why.startswith("rank") else f"rank {rank} {why}"
        self.say("waiting", "")
        self._until_all("waiting")
        gone = [r for r in range(len(self.ranks)) if r not in self.said("waiting")]
        if not gone:
            return (
                f"rank {self.rank} could not reach the others: {str(error).splitlines()[0][:200]}"
            )
        names = " and ".join(map(str, gone))
        who = "rank" if len(gone) == 1 else "ranks"
        return f"{who} {names} did not answer within {self.patience:g} s"

    def _until_all(self, topic: str) -> None:
        """Wait a moment for the word of each."""
        ends = time.monotonic() + MOMENT
        while len(self.said(topic)) < len(self.ranks) and time.monotonic() < ends:
            time.sleep(0.02)

    def _meet(self, about: Mapping[str, Any]) -> None:
        """Wait until all ranks have attached, and compare what they attached."""
        spelled = _ADDRESS.sub("", json.dumps(about, sort_keys=True, default=str))
        self.say("attached", spelled)
        keys = [f"{self._key}/attached/{r}" for r in range(len(self.ranks))]
        limit = min(self.patience, BRIEF if self.ranks in _missed else START)
        try:
            self._store.wait(keys, datetime.timedelta(seconds=limit))
        except Exception as error:
            missing = [r for r in range(len(self.ranks)) if r not in self.said("attached")]
            _missed.add(self.ranks)
            with suppress(RuntimeError):  # so that the next time all begin with the same
                self._store.delete_key(keys[self.rank])
            raise NotAttached(
                f"expected eq.attach on all {len(self.ranks)} ranks that train this model, but "
                f"rank {' and '.join(map(str, missing))} did not call it within {limit:g} s"
            ) from error
        _missed.discard(self.ranks)
        here = json.loads(spelled)
        for rank, words in self.said("attached").items():
            there = json.loads(words)
            odd = [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]
            if odd:
                raise ValueError(
                    f"expected the same on all ranks, but {odd[0]} is {here.get(odd[0])!r} on rank "
                    f"{self.rank} and {there.get(odd[0])!r} on rank {rank}; attach with the same "
                    "arguments on every rank"
                )


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one type laid out flat."""
    return torch.cat([t.reshape(-1) for t in tensors])
