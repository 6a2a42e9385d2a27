"""Faithfulness: the monitor's questions to the loss it replays, before it trusts it."""

import math

from torch import Tensor
from torch.nn.modules import module as torch_module

from eqtoolbox.record.record import Record
from eqtoolbox.replay.calls import hooks_of_all_modules
from eqtoolbox.replay.gradient import (
    MIN_COSINE,
    SAME,
    Circumstances,
    GradientCheck,
    compare,
    repeats,
)
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.scalar import NotALoss
from eqtoolbox.replay.thread.scope import LeavesTrace, current
from eqtoolbox.replay.writes import refuse_hidden_writes
from eqtoolbox.watch.capture.holders import around
from eqtoolbox.watch.capture.loss_capture import LossCapture
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.interrupts import for_the_loop
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.snapshot import OTHER, TIMES, Snapshot
from eqtoolbox.world.reducing import reducing
from eqtoolbox.world.world import Retired, World

CHECK = "monitor/closure_grad_cos"
RATIO = "monitor/closure_grad_ratio"
ZERO = "the gradient is zero: it has no direction to compare"
UNTRAINED = "monitor/parameters_untrained"


class Faithfulness:
    """Does the loss leave live tensors alone (once), and is it the one that trains (each time)?"""

    def __init__(self, capture: LossCapture, journal: Journal, world: World | None = None) -> None:
        self._world = world or World()
        self.checked = False  # whether it was asked before
        self.other = ""  # why the gradient that was used is another than the loss's; empty if not
        self._capture = capture
        self._journal = journal
        self._harmless = False
        self._warned: set[str] = set()

    @property
    def settled(self) -> bool:
        """Whether nothing is evaluated any more to find out if the loss may be trusted."""
        return self.checked and (self._harmless or bool(self._capture.refused))

    def harmless(self, objective: Objective | None, params: Parameters) -> bool:
        """Whether the loss is one and can be evaluated without a trace; warns where not."""
        if objective is None or self._harmless:
            return True
        if self._capture.refused:
            return False
        try:
            with objective.isolated(thorough=True):
                self._capture.silent = refuse_hidden_writes(objective, params)
            for piece in objective.pieces:
                piece.random.silent = self._capture.silent
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

    def check(self, snapshot: Snapshot, own: Parameters | None = None, scale: float = 1.0) -> bool:
        """Compare the replayed gradient with the step's and record how far they agree.

        Args:
            own: this process's share of the step's gradient, where several average theirs.
            scale: by which a gradient scaler had multiplied the losses.

        Returns whether the weights of the losses turned out to be others.
        """
        first, self.checked = not self.checked, True
        if first:
            self._name_untrained()
        if snapshot.measured is None:
            self._journal.warn("monitor", snapshot.why_no_loss)
        if snapshot.gradient is None:
            why = "the loss is evaluated several times in one step, or not every optimizer steps"
            row = Record(step=0, name=CHECK, value=math.nan, status="not_applicable", note=why)
            if first:
                self._journal.write(row)
        elif snapshot.training is not None:
            try:
                what = f"check at step {snapshot.step}"
                together = self._world.together(what), reducing(self._world)
                with together[0], together[1], snapshot.training.isolated():
                    replayed = snapshot.slope(snapshot.training, scale)
                    found = self._judged(snapshot, replayed, 0.0, own)
                    if found.cause:
                        repeated = repeats(snapshot.training, snapshot.before)
                        found = self._judged(snapshot, replayed, repeated, own)
                return self._tell(snapshot, replayed, found, own)
            except Retired:
                pass  # the course says so
            except LeavesTrace as reason:
                self.refuse(str(reason))
            except BaseException as error:
                self._journal.failed("monitor", error)
        return False

    def _judged(
        self,
        snapshot: Snapshot,
        replayed: dict[str, Tensor],
        repeated: float,
        own: Parameters | None,
    ) -> GradientCheck:
        """The comparison over what an attached optimizer holds: nobody clears other gradients."""
        pending, held = self._capture.pending, self._capture.watched.held()
        replay = current()
        told = Circumstances(
            hooked=_hooked(self._capture.watched),
            passed_by=bool(torch_module._global_forward_hooks) and not hooks_of_all_modules(),
            unreached=pending.unreached,
            climbed=self._climber(),
            accumulates=replay is not None and replay.accumulates,
            stale=pending.stale,
            beside=pending.beside,
            repeated=repeated,
        )
        gradient = {n: g for n, g in (own or snapshot.gradient or {}).items() if n in held}
        return compare(replayed, gradient, snapshot.before, told)

    def _tell(
        self,
        snapshot: Snapshot,
        replayed: dict[str, Tensor],
        found: GradientCheck,
        own: Parameters | None,
    ) -> bool:
        compared = (*replayed.values(), *(own or snapshot.gradient or {}).values())
        if math.isnan(found.cosine) and not any(bool(g.any()) for g in compared):
            for name in (CHECK, RATIO):
                row = Record(step=0, name=name, value=math.nan, status="not_applicable", note=ZERO)
                self._journal.write(row)
            return False
        caught, reached = self._capture.pending.counts
        summed = self._capture.pending.learn_weights(found.ratio)
        if summed:
            replayed = {n: found.ratio * r for n, r in replayed.items()}
            found = self._judged(snapshot, replayed, 0.0, own)
        self.other = found.cause if found.cosine < MIN_COSINE else ""
        snapshot.told[OTHER] = self.other
        if found.cosine >= MIN_COSINE and abs(found.ratio - 1) > SAME:
            snapshot.told[TIMES] = found.ratio
        note = f"{caught} losses before the step, {reached} of them reached by a backward"
        self._journal.emit(CHECK, found.cosine, note=note if caught > 1 else found.cause)
        cause = {"cause": found.cause} if found.cause else {}
        self._journal.emit(RATIO, found.ratio, note=found.cause, facts=cause)
        if found.cosine < MIN_COSINE:
            what = (
                "probes measure the loss itself, whose gradient was changed before the step"
                if found.changed
                else "probes measure a different loss"
            )
            self._warn_once(
                "gradient",
                f"the replayed loss has another gradient than the training step (cosine "
                f"{found.cosine:.3f} at step {snapshot.step}; {note}): {what}. Likely cause: "
                f"{found.cause}",
            )
        elif found.cause:
            another = "" if found.cause == self._capture.pending.beside else " of another scale"
            self._warn_once(
                "scale",
                f"probes measure {'another loss' if not another else f'a loss{another}'} (at step "
                f"{snapshot.step}): {found.cause}",
            )
        return summed

    def _warn_once(self, kind: str, message: str) -> None:
        """Later steps say it with other numbers: they have their records."""
        if kind not in self._warned:
            self._warned.add(kind)
            self._journal.warn("monitor", message)

    def _name_untrained(self) -> None:
        """Parameters that ask for gradients and that no attached optimizer holds."""
        watched = self._capture.watched
        left = [n for n in watched.trainable() if n not in watched.held()]
        if left:
            facts = {"parameters": left[:5]}
            names = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            self._journal.emit(UNTRAINED, float(len(left)), note=names, facts=facts)
            self._journal.warn(
                "monitor",
                f"{len(left)} trainable parameters are in no attached optimizer and are not moved "
                f"by it: {names}; add them to its parameters, attach the optimizer that has them, "
                "too, or freeze them by requires_grad_(False)",
            )

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
