"""Acts: what is done to parameters between two steps, told to the monitors that watch them."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from eqtoolbox.replay.eager import eager
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.probe import Scheduled
from eqtoolbox.watch.runner import Runner
from eqtoolbox.watch.shared import Shared
from eqtoolbox.watch.step import Step

_LISTENING: "weakref.WeakSet[Acts]" = weakref.WeakSet()


class Acts:
    """What one monitor is told of acts on the parameters that it watches.

    Args:
        watched: the parameters.
        taken: the step that is being taken, if one is.
        shared, runner, journal, probes: of the monitor.
        attached: whether it watches.
        settle: reads what is still to be read of the last step.
    """

    def __init__(
        self,
        watched: Watched,
        taken: Step,
        shared: Shared,
        runner: Runner,
        journal: Journal,
        probes: Sequence[Scheduled],
        attached: Callable[[], bool],
        settle: Callable[[], None],
    ) -> None:
        self._watched, self._taken, self._shared = watched, taken, shared
        self._runner, self._journal, self._probes = runner, journal, probes
        self._attached, self._settle = attached, settle
        _LISTENING.add(self)

    def hears(self, own: set[int]) -> bool:
        """Whether it watches any of these parameters, by identity."""
        return self._attached() and any(id(p) in own for p in self._watched.named().values())

    def between_steps(self) -> None:
        """Raise where a step is being taken: what it began from is already known."""
        if self._taken.before is not None:
            raise RuntimeError(
                f"step {self._journal.step} is being taken: expected an act between two steps of "
                "the optimizer, got one inside; call it after optimizer.step() has returned"
            )

    @eager
    @torch.no_grad()
    def tell(self, act: str, said: str, moved: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Write the event, and have every probe take note of what was moved.

        Args:
            act: its name, such as "balance".
            said: one sentence on what was done.
            moved: each parameter before and after, by identity.
        """
        self._settle()
        named = {n: p.detach() for n, p in self._watched.trainable().items()}
        now = {n: moved[id(p)] for n, p in self._watched.trainable().items() if id(p) in moved}
        before = named | {n: pair[0].detach() for n, pair in now.items()}
        after = named | {n: pair[1].detach() for n, pair in now.items()}
        self._journal.event("info", f"act.{act}", said)
        for probe in (s.probe for s in self._probes):
            if probe.name in self._runner.references:
                try:
                    probe.acted(before, after, self._runner.reference(probe), self._shared)
                except BaseException as error:
                    self._journal.failed(probe.name, error)
        self._journal.flush()


def check_between_steps(model: nn.Module) -> None:
    """Refuse to act on a model in the midst of a step that a monitor has caught.

    Raises:
        RuntimeError: an optimizer is stepping, as where an act is called in one of its hooks.
    """
    for acts in _listening(model):
        acts.between_steps()


def announce(
    model: nn.Module,
    act: str,
    said: str,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> None:
    """Tell all monitors that watch parameters of `model` what was done to them.

    Each writes an event, at the step that comes next, and counts what the act did to the charges
    as the cause `act` of their drift.

    Args:
        model: any module that has the parameters.
        act: its name, letters and dots, such as "balance".
        said: one sentence on what was done.
        before, after: what was moved, by the names of `model`.
    """
    own = dict(model.named_parameters())
    moved = {id(own[n]): (before[n], after[n]) for n in after}
    for acts in _listening(model):
        acts.tell(act, said, moved)


def _listening(model: nn.Module) -> Iterator[Acts]:
    own = {id(p) for p in model.parameters()}
    return iter([acts for acts in _LISTENING if acts.hears(own)])
