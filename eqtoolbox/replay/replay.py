"""A replay: one thread evaluates a model and its loss again, and leaves everything as it was."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.calls import answer, give_back
from eqtoolbox.replay.outside import watch
from eqtoolbox.replay.reach.contents import Contents, gradient
from eqtoolbox.replay.reach.neighbours import reached_by_others
from eqtoolbox.replay.reach.slots import Slot
from eqtoolbox.replay.reach.tensors import LiveTensors
from eqtoolbox.replay.reach.walk import said
from eqtoolbox.replay.settings import Settings
from eqtoolbox.replay.streams import Frame, OtherStreams, TorchStreams, alone
from eqtoolbox.replay.thread.scope import LeavesTrace, unobserved
from eqtoolbox.replay.thread.threads import left_running


class Replay:
    """What is in reach, as it was when the replay began.

    Args:
        hosts: modules that are evaluated with exchanged parameters and buffers.
        roots: whatever else the evaluations use, such as a loss function.
        draws: whether they may draw from NumPy's or Python's global streams.

    Raises:
        LeavesTrace: more is in reach than can be kept.
    """

    def __init__(
        self, hosts: tuple[nn.Module, ...], roots: Iterable[Any], draws: bool = True
    ) -> None:
        watch()
        self.place = threading.get_ident()  # where it goes on, whichever threads take part
        self.refused = ""  # what an evaluation was stopped for
        self.exchange: dict[int, Any] = {}  # stand-ins of the evaluation that goes on
        self.once = False  # whether what goes on is differentiated once at most
        self.differentiates: bool | None = None  # whether the loss itself does; None: not seen yet
        self.unsaved = False  # whether what goes on saves nothing for a derivative
        self.numbers = sum(p.numel() for host in hosts for p in host.parameters() if not is_lazy(p))
        self.accumulates = False  # whether the loss itself adds to gradients of the model
        self.frames: list[Frame] = []  # of the evaluations that go on, the innermost last
        self.threads: list[Any] = []  # that an evaluation has started
        self.failures: list[Exception] = []  # of these
        self.drawn_from: frozenset[str] = frozenset()  # streams that an evaluation was heard to
        self.listened = False  # whether one was listened to
        self._drawing = threading.RLock()
        self._hosts = hosts
        self._outside = Belongings((*hosts, *roots), hosts)
        self._live = LiveTensors(())
        self._kept: dict[int, Contents] = {}  # tensors that are kept by value
        self._watch(self._outside.tensors)
        self._others = reached_by_others()
        self._common: dict[Any, Slot] = {}  # what other threads can reach, each thing once
        self._known: list[Slot] = []  # the same again, of another start
        self._leave_to_others(self._outside)
        self._settings = Settings()
        self._alone = alone()
        self._torch, self._drawn = TorchStreams(), False  # whether drawn from between evaluations
        self._other = OtherStreams() if draws else None
        self._starts: list[Belongings] = []  # that are taken in
        self._answered: list[nn.Module] = []
        self._answer(self._outside.modules)

    def protect(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these as they are, too."""
        with unobserved():
            self._live.add((((None, name), t) for name, t in tensors.items()), self._kept)

    def widen(self, roots: Iterable[Any]) -> None:
        """Take in what else an evaluation uses."""
        more = [root for root in roots if id(root) not in self._outside.seen]
        if more:
            with unobserved():
                self._take(Belongings(more, self._hosts))

    def meet(self, module: nn.Module) -> None:
        """Take in a module that is about to be called."""
        self.widen((module,))

    def begin(self, start: Belongings | None) -> None:
        """Undo what the evaluation before did; everything is as it was at `start`.

        Raises:
            LeavesTrace: something cannot be undone.
        """
        with unobserved():
            self._begin(start)

    def _begin(self, start: Belongings | None) -> None:
        self._end_threads()
        if start is not None and all(start is not known for known in self._starts):
            self._starts.append(start)
            self._leave_to_others(start)
            self._take(start)
            for slot in start.slots:
                if type(slot) is Contents:
                    slot.count_as(self._kept[id(slot.owner)])
        self._undo()
        self._settings.restore()
        self._unchanged_by_others()
        self.exchange = self._outside.exchange()
        if start is not None:
            self.exchange |= start.exchange()
        (start or self._outside).restore(self.exchange)

    def end(self) -> None:
        """Leave everything as it was.

        Raises:
            LeavesTrace: something could not be put back; says what.
        """
        with unobserved():
            self._end()

    def _end(self) -> None:
        give_back(self._answered)
        try:
            self._end_threads()
            self._undo()
            self._unchanged_by_others()
        finally:
            moved = self._outside.restore({})
            self._settings.restore()
            if self._drawn or (self._alone and self._torch.moved()):
                self._torch.restore()
            if self._other is not None and self._other.moved():
                self._other.restore()
        left = [slot for slot in moved if slot.moved({})]
        if left:
            self.refuse(
                f"evaluating the loss changed {said(left[0].path)} in a way that could not be "
                "undone: probes that do are switched off"
            )
        if self.refused:  # whoever caught it has gone on with something else
            raise LeavesTrace(self.refused)

    def refuse(self, why: str) -> NoReturn:
        """Stop what goes on.

        Raises:
            LeavesTrace: always.
        """
        self.refused = why
        raise LeavesTrace(why)

    def draw(self) -> None:
        """Random numbers of torch are about to be drawn."""
        with self._drawing:
            if self.frames:
                self.frames[-1].said = True
                self.frames[-1].draw()
            self._drawn = self._drawn or not self.frames

    def drawn(self, name: str) -> None:
        """An evaluation is about to draw from this stream, which no operation told of."""
        with self._drawing:
            if self.frames and not (name == "torch" and self.frames[-1].said):
                self.drawn_from |= {name}
                self.frames[-1].draw(name)

    def keeps(self, tensor: Tensor) -> bool:
        """Whether it has the entries that it had where the evaluation begins."""
        return id(tensor) in self._kept

    def writes(self, tensor: Tensor) -> bool:
        """An operation is about to write into this tensor; whether that was not known before."""
        with unobserved():
            if tensor.grad_fn is not None and id(tensor) in self._outside.seen:
                self.refuse(
                    "evaluating the loss writes into a tensor that keeps a graph of the training, "
                    "which cannot be put back: probes that do are switched off; detach it where it "
                    "is stored, or make a new one"
                )
            return self._live.before_write(tensor)

    def adds_to(self, leaf: Tensor) -> None:
        """A backward is about to add to the gradient of this tensor."""
        grad = gradient(leaf)
        if grad is not None:
            self.writes(grad)
        with unobserved():
            self.accumulates |= not self._live.knows(leaf)

    def _take(self, more: Belongings) -> None:
        """Other things are in reach as well: keep them as they are."""
        new = [m for m in more.modules if id(m) not in self._outside.seen]
        self._outside.add(more)
        self._leave_to_others(self._outside)
        self._watch(more.tensors)
        self._answer(new)

    def _watch(self, named: Iterable[tuple[Any, Tensor]]) -> None:
        slots = self._outside.slots
        self._kept = {id(slot.owner): slot for slot in slots if type(slot) is Contents}
        self._live.add(named, self._kept)

    def _answer(self, modules: list[nn.Module]) -> None:
        answer(modules)
        self._answered += modules

    def _end_threads(self) -> None:
        started, self.threads, self.failures = self.threads, [], []
        name = left_running(started)
        if name:
            self.refuse(
                f"the loss starts a thread ({name}) that goes on after it: what it does in an "
                "evaluation cannot be undone, so that probes that evaluate the loss are switched "
                "off; end it inside of the loss, or start it outside"
            )

    def _leave_to_others(self, belongings: Belongings) -> None:
        """What another thread of the program can reach is not written, but must not change."""
        if self._others or belongings.common:
            belongings.leave(set().union(*self._others.values()))
            for slot in belongings.common:
                known = self._common.setdefault(slot.key(), slot)
                if known is not slot:  # of one thing looked at once, then as the one that is known
                    self._known.append(slot)

    def _unchanged_by_others(self) -> None:
        for slot in (*self._common.values(), *self._known):
            if slot.moved({}):
                name = next(n for n, theirs in self._others.items() if slot.divided(theirs)[1])
                self.refuse(
                    f"{said(slot.path)} changed while the loss was evaluated again, and thread "
                    f"{name} can reach it, too: whose change it was cannot be told, so that "
                    "probes that evaluate the loss are switched off; give the loss a copy"
                )
        self._known.clear()

    def _undo(self) -> None:
        lost = self._live.undo()
        if lost:
            self.refuse(
                f"evaluating the loss wrote into {said(lost[0])} by an operation that does not say "
                "so, which could not be undone: probes that do are switched off; make it a buffer "
                "of the model, which probes work on a copy of, or write outside the loss"
            )
