"""Faithfulness: the monitor's questions to the loss it replays, before it trusts it."""

import math

from torch import Tensor
from torch.nn.modules import module as torch_module

from eqtoolbox.capture.gradient_check import (
    MIN_COSINE,
    Circumstances,
    compare,
    repeats,
    replayed_gradient,
)
from eqtoolbox.capture.holders import around
from eqtoolbox.capture.loss_capture import LossCapture
from eqtoolbox.capture.watched import Watched
from eqtoolbox.capture.writes import refuse_hidden_writes
from eqtoolbox.interrupts import for_the_loop
from eqtoolbox.journal import Journal
from eqtoolbox.objective import NotALoss, Objective, Parameters
from eqtoolbox.record import Record
from eqtoolbox.replay.calls import hooks_of_all_modules
from eqtoolbox.replay.scope import LeavesTrace
from eqtoolbox.snapshot import Snapshot

CHECK = "monitor/closure_grad_cos"
RATIO = "monitor/closure_grad_ratio"


class Faithfulness:
    """Once: does the loss leave live tensors alone, and is it the one that trains?"""

    def __init__(self, capture: LossCapture, journal: Journal) -> None:
        self.checked = False
        self._capture = capture
        self._journal = journal
        self._harmless = False

    def harmless(self, objective: Objective | None, params: Parameters) -> bool:
        """Whether the loss is one and can be evaluated without a trace; warns where not."""
        if objective is None or self._harmless:
            return True
        if self._capture.refused:
            return False
        try:
            with objective.isolated(thorough=True):
                refuse_hidden_writes(objective, params)
        except LeavesTrace as reason:
            self.refuse(str(reason))
            return False
        except NotALoss as reason:
            self._capture.missed = str(reason)
            self._journal.warn("monitor", str(reason))
            return False
        except BaseException as error:  # what else fails is told where it is measured
            if for_the_loop(error):
                raise
            return True
        self._harmless = True
        return True

    def refuse(self, why: str) -> None:
        """No probe evaluates the loss from now on: it would leave a trace."""
        if not self._capture.refused:
            self._capture.refused = why
            self._journal.warn("monitor", why)

    def check(self, snapshot: Snapshot, own: Parameters | None = None) -> bool:
        """Compare the replayed gradient with the step's and record how far they agree.

        Args:
            own: this process's share of the step's gradient, where several average theirs.

        Returns whether the weights of the losses turned out to be others.
        """
        if snapshot.measured is None:
            self._journal.warn("monitor", snapshot.why_no_loss)
        if snapshot.gradient is None:
            why = "the optimizer evaluates the loss several times in one step"
            row = Record(step=0, name=CHECK, value=math.nan, status="not_applicable", note=why)
            self._journal.write(row)
        elif snapshot.training is not None:
            try:
                with snapshot.training.isolated():
                    replayed = replayed_gradient(snapshot.training, snapshot.before)
                    repeated = repeats(snapshot.training, snapshot.before)
                gradient = own or snapshot.gradient
                return self._judge(replayed, gradient, snapshot.before, repeated)
            except LeavesTrace as reason:
                self.refuse(str(reason))
            except BaseException as error:
                self._journal.failed("monitor", error)
        return False

    def _judge(
        self, replayed: dict[str, Tensor], gradient: Parameters, before: Parameters, repeated: float
    ) -> bool:
        caught, reached = self._capture.pending.counts
        told = Circumstances(
            hooked=_hooked(self._capture.watched),
            passed_by=bool(torch_module._global_forward_hooks) and not hooks_of_all_modules(),
            unreached=self._capture.pending.unreached,
            climbed=self._climber(),
            repeated=repeated,
        )
        found = compare(replayed, gradient, before, told)
        summed = self._capture.pending.learn_weights(found.ratio)
        if summed:
            replayed = {n: found.ratio * r for n, r in replayed.items()}
            found = compare(replayed, gradient, before, told)
        note = f"{caught} losses before the step, {reached} of them reached by a backward"
        self._journal.emit(CHECK, found.cosine, note=note if caught > 1 else found.cause)
        self._journal.emit(RATIO, found.ratio, note=found.cause)
        if found.cosine < MIN_COSINE:
            what = (
                "probes measure the loss itself, whose gradient was changed before the step"
                if found.changed
                else "probes measure a different loss"
            )
            self._journal.warn(
                "monitor",
                f"the replayed loss has another gradient than the training step (cosine "
                f"{found.cosine:.3f}; {note}): {what}. Likely cause: {found.cause}",
            )
        elif found.cause:
            self._journal.warn("monitor", f"probes measure a loss of another scale: {found.cause}")
        return summed

    def _climber(self) -> str:
        """Who moved the parameters between the losses and the step; empty if nobody did."""
        if not self._capture.pending.climbed:
            return ""
        return around(self._capture.watched.optimizers) or "the loop"


def _hooked(watched: Watched) -> tuple[str, ...]:
    """Parameters and modules whose gradients a hook sees, which replays do not call."""
    tables = ("_backward_hooks", "_backward_pre_hooks")
    own = [*watched.trainable().items(), *watched.model.named_modules()]
    return tuple(n or "the model" for n, x in own if any(getattr(x, t, None) for t in tables))
