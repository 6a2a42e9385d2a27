"""Memory: how much of a batch a probe may evaluate at once, so that training's peak stays."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.replay.divided import apart, elsewhere
from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.heap import give_back
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.operations import by_kernels
from eqtoolbox.replay.tree import tensors
from eqtoolbox.watch.interrupts import for_the_loop, told
from eqtoolbox.watch.probe import Probe
from eqtoolbox.watch.snapshot import NoRoom, Snapshot, no_room

Limit = Annotated[float | None, OWN]
PEAK = 1.25  # times training's own peak
SLACK = 2**28  # bytes that a probe may take in any case
RESERVE = 0.1  # of a device's memory, kept free
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
PIECES = 8  # of a batch over which a gradient is summed at most
ROUNDED = 1e-5  # relative, up to which a loss is the mean of its pieces' but for rounding
APART = 1e-4  # relative, up to which a loss is the mean of its pieces' losses


class Governor:
    """Keeps what probes allocate below `limit` times the peak of training itself.

    At a due step there are parameters, their copy theta_t, gradients and the optimizer's state;
    training's peak is without the copy, and with what autograd saves in one evaluation of the loss
    as it trains. That is counted once for each loss by saved-tensor hooks, on an eighth and a
    quarter of the batch, and taken to be linear in its numbers. A probe needs

        graphs * saved bytes of its own evaluation + copies * parameters,

    `Probe.graphs` and `Probe.copies`. Where that is more than is left (and more than 256 MiB), it
    measures a half, a quarter, ... of the batch, if the loss of the batch is the mean of those of
    its pieces, or if what it measures is true on any samples (`Probe.on_any_part`); or something
    leaner measures (`Probe.leaner`); else nothing. The gradients that every due step asks for are
    summed over pieces then. On an accelerator it also leaves a tenth of the memory free.

    Args:
        limit: of the peak, over training's own; None for no limit.

    Raises:
        ValueError: as `check_limit`.
    """

    def __init__(self, limit: float | None) -> None:
        check_limit(limit)
        self.limit = limit

    def limited(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what there is room for."""
        measured = snapshot.measured
        if measured is None:
            return snapshot
        most = max(map(_numbers, measured.calls))
        graphs = [self._saved(snapshot, snapshot.objective, once) * most for once in (False, True)]
        if self.limit is None:
            return replace(snapshot, graph=graphs[0], once=graphs[1])
        # the rank with the least room decides
        left, graph, once = snapshot.world.most("room", [-self._room(snapshot), *graphs])
        return replace(snapshot, room=max(-left, SLACK), graph=graph, once=once)

    def divided(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with its gradients to be summed over pieces of a batch, for want of room.

        That is exact where the loss is the mean of its pieces' losses, dropout and all.
        """
        trained = snapshot.training
        if self.limit is None or trained is None or snapshot.world.several:
            return snapshot
        try:
            saved = self._saved(snapshot, trained, once=True) * max(map(_numbers, trained.calls))
            left = max(self._room(snapshot), SLACK) - _bytes(snapshot.before.values())
            most = min(PIECES, *map(samples, trained.calls))
            if saved <= left or most < 2 or not self._exact(snapshot, most):
                return snapshot
            return replace(snapshot, parts=most)
        except BaseException as error:  # what a loss says is told where it is measured
            if for_the_loop(error):
                raise
            return snapshot

    def _exact(self, snapshot: Snapshot, parts: int) -> bool:
        """Whether each loss of the step is the mean of its pieces' losses, not at theta_t alone.

        That is asked of every batch: a mean over what a mask leaves is one of pieces only where it
        leaves as much of each. At the start of a training every piece may have one loss, as log C
        of a head that is zero: then their gradients need not have the mean. So another point is
        asked once, of a piece and its halves.
        """
        assert snapshot.training is not None
        calls, point = snapshot.training.calls, dict(snapshot.before)

        def off() -> float:
            found, there = [], elsewhere(point)
            for call in calls:
                piece = call.split(parts)[0][0]
                piece = piece if samples(piece) > 1 else call.split(parts // 2)[0][0]
                found.append(apart(piece, there, 2)[0])
            return max(found)

        here = (apart(call, point, parts)[0] <= ROUNDED for call in calls)
        about = snapshot.identity, parts, len(calls)
        return all(here) and snapshot.shared.get("cut", about, off) <= ROUNDED

    def fitted(self, probe: Probe, snapshot: Snapshot) -> tuple[Probe, Snapshot, int]:
        """What measures what, and on how many samples; 0 where it is the whole batch.

        Args:
            probe: that measures, or one that is leaner.
            snapshot: `limited`.

        Raises:
            NoRoom: not even a sample fits, or the batch cannot be cut.
        """
        try:
            return probe, *self._fitted(probe, snapshot)
        except NoRoom:
            leaner = probe.leaner()
            if leaner is None:
                raise
        return self.fitted(leaner, snapshot)

    def _fitted(self, probe: Probe, snapshot: Snapshot) -> tuple[Snapshot, int]:
        measured, room = snapshot.measured, snapshot.room
        if measured is None:
            return snapshot, 0
        graphs = probe.graphs * snapshot.graph * len(measured.calls)
        copies = probe.copies * _bytes(snapshot.before.values())
        if graphs + copies <= room:
            if graphs + copies + sum(_bytes(s.gradient.values()) for s in snapshot.slopes) > room:
                snapshot.slopes.clear()  # who else asks for a gradient makes it anew
            return snapshot, 0
        if copies > room:
            raise NoRoom(no_room(graphs + copies, room, "copies of the parameters"))
        if probe.on_any_part and len(measured.calls) == 1:
            part = snapshot.within(measured, probe.copies, probe.graphs)
            return replace(snapshot, measured=part), samples(part)
        if why := self._whole(snapshot):
            raise NoRoom(no_room(graphs + copies, room, f"a batch that cannot be cut ({why})"))
        while graphs + copies > room:
            if not snapshot.divisible:
                raise NoRoom(no_room(graphs + copies, room, "one sample"))
            snapshot, graphs = snapshot.halved(), graphs / 2
        return snapshot, samples(snapshot.measured)

    def _whole(self, snapshot: Snapshot) -> str:
        """Why only the whole batch is measured; empty where a part is as good, dropout apart."""

        def reason() -> str:
            if len({one.loss_fn for one in snapshot.objective.calls}) > 1:
                return "it is of several losses"
            with _Undropped():
                call, at = snapshot.objective.calls[-1], snapshot.before
                several = (2, 3) if samples(call) > 2 else (2,)  # one of them may fit by chance
                off, why = max(apart(call, at, parts) for parts in several)
            return why if off > APART else ""

        return snapshot.shared.get("cut", snapshot.identity, reason)

    def _room(self, snapshot: Snapshot) -> float:
        """Bytes that are left of the allowed peak at a due step."""
        params = _bytes(snapshot.before.values())
        held = params * (2 if snapshot.gradient is not None else 1)
        held += _bytes(x for state in snapshot.state.values() for x in state.values())
        trained = snapshot.training or snapshot.measured
        assert trained is not None
        assert self.limit is not None
        largest = max(_numbers(one) for one in trained.calls)  # one graph at a time
        peak = held + self._saved(snapshot, trained, once=True) * largest
        device = next(iter(snapshot.before.values())).device
        noted = params if snapshot.gradient is not None and snapshot.copied else 0
        return min(self.limit * peak - held - params - noted, _free(device))

    def _saved(self, snapshot: Snapshot, objective: Objective, once: bool = False) -> float:
        """Bytes that autograd saves in one evaluation of the loss, for each number in the batch.

        Args:
            once: of the operations that training runs, and not of those that differentiate twice.
        """
        one = objective.calls[-1]
        about = snapshot.identity, one.autocast, one.mixed, once
        bytes_of = partial(by_kernels, saved) if once else saved

        def counted() -> float:
            try:  # of two parts that the loss takes: what goes with the batch, and what does not
                parts = min(8, samples(one))
                small, large = (one.split(k)[0][0] for k in (parts, parts // 2))
                least, most = (bytes_of(part, snapshot.before) for part in (small, large))
                slope = (most - least) / (_numbers(large) - _numbers(small))
                return slope + max(least - slope * _numbers(small), 0.0) / _numbers(one)
            except Exception:  # whatever a user's loss says to a part of its batch
                return bytes_of(one, snapshot.before) / max(_numbers(one), 1)

        return snapshot.shared.get("saved_bytes", about, counted)


def saved(objective: Objective, params: Parameters) -> int:
    """Bytes of the tensors that autograd saves when the loss is evaluated, each storage once.

    0 where the loss uses `torch.func`, under which nothing can be counted.
    """
    seen = {p.untyped_storage().data_ptr() for p in params.values()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself may be an output of its own node: a cycle

    leaves = {n: leaf(p.detach()) for n, p in params.items()}
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            held = objective.loss(leaves)
    except RuntimeError as error:
        if "saved tensor hooks" in str(error):
            return 0
        raise
    del held  # alive until here, so that no storage was used twice
    total = sum(found.values())
    if total > SLACK:
        give_back()
    return total


def samples(objective: Objective | None) -> int:
    """How many samples an objective is over: the length of the first tensor of each batch."""
    if objective is None:
        return 0
    first = (next((x for x in tensors(one.batch) if x.dim()), None) for one in objective.calls)
    return sum(len(x) for x in first if x is not None)


def check_limit(memory: float | None) -> None:
    """Refuse what is no multiple of training's peak.

    Raises:
        ValueError: it is neither None nor a number of at least 1.
    """
    number = isinstance(memory, (int, float)) and not isinstance(memory, bool)
    if memory is not None and not (number and 1 <= memory < math.inf):
        raise ValueError(
            "memory is the largest peak as a multiple of training's own, such as 1.25, at least 1, "
            f"or None for no limit, got {memory!r}"
        )


def _numbers(objective: Objective) -> int:
    return sum(x.numel() for one in objective.calls for x in tensors(one.batch))


def _bytes(values: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def _free(device: torch.device) -> float:
    """Bytes that an accelerator can still give, less a reserve."""
    if device.type != "cuda":
        return math.inf
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached - RESERVE * total


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on an accelerator or not."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = told(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said
    )


class _Undropped(TorchFunctionMode):
    """Dropout is the identity: halves would draw other masks than the whole."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in DROPOUTS:
            return args[0] if args else given["input"]
        if func is F.scaled_dot_product_attention:
            args, given["dropout_p"] = (*args[:4],), 0.0
        return func(*args, **given)
