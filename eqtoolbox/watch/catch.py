"""The catch: an optimizer step that is over, frozen into a snapshot and measured by due probes."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eqtoolbox.linalg.vectors import not_finite
from eqtoolbox.replay.gathered import Gathered
from eqtoolbox.replay.heap import tidy
from eqtoolbox.replay.identity import identity
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective, Parameters
from eqtoolbox.watch.account import Account
from eqtoolbox.watch.agenda import Agenda
from eqtoolbox.watch.capture.loss_capture import LossCapture
from eqtoolbox.watch.capture.watched import Watched
from eqtoolbox.watch.faithfulness import Faithfulness
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.plan import VITAL
from eqtoolbox.watch.rows import answers
from eqtoolbox.watch.runner import Runner
from eqtoolbox.watch.shared import Shared
from eqtoolbox.watch.snapshot import OTHER, Snapshot, optimizer_state, parameter_groups
from eqtoolbox.watch.step import Step
from eqtoolbox.watch.vitals.vitals import Vitals
from eqtoolbox.world.layout import local
from eqtoolbox.world.world import Retired, World

SHARDED = (
    "the parameters were sharded after attach(); attach after fully_shard() or "
    "accelerator.prepare()"
)


class Catch:
    """Makes snapshots of steps and has them measured.

    Args:
        watched: the parameters of the training.
        capture: that catches its losses.
        taken: what the step began from.
        journal, runner, account: to which measurements go.
        agenda: what is measured.
        probe_batch: a fixed batch to measure on; None for each step's own.
        seed: of the random state on that batch.
        resumed: whether the run goes on in a directory of an earlier one.
        world: whose ranks measure together.
    """

    def __init__(
        self,
        watched: Watched,
        capture: LossCapture,
        taken: Step,
        journal: Journal,
        runner: Runner,
        account: Account,
        agenda: Agenda,
        *,
        probe_batch: Any,
        seed: int,
        resumed: bool,
        world: World | None = None,
    ) -> None:
        self._world = world or World()
        self.faithful = Faithfulness(capture, journal, self._world)
        self.shared = Shared(journal, self._world)
        self.vitals = Vitals(watched.model, capture.hearing, journal)
        self.probe_batch = probe_batch
        self.shapes: dict[str, torch.Size] | None = None  # of the parameters last measured
        self._loaded, self._unloaded = False, resumed  # whether its state was given back
        self._watched, self._capture, self._taken = watched, capture, taken
        self._journal, self._runner, self._account = journal, runner, account
        self._agenda = agenda
        self._random = RandomState.seeded(seed)

    def measure(self, step: int, before: Parameters, named: dict[str, nn.Parameter]) -> None:
        """Run the probes of the agenda on the step that is over.

        Args:
            step: its number.
            before: theta_t.
            named: the live parameters, at theta_{t+1}.
        """
        if self._watched.cut:
            self._world.retire(SHARDED)
            raise Retired(SHARDED)
        # GAN loops take gradients off and on inside a step
        after = {n: local(p.detach()) for n, p in named.items() if n in before}
        together = bool(self._agenda.together)
        snapshot = self.snapshot(step, before, after, named, together)
        self._parameters_changed(before)
        self._watched.tell(self._journal.event)
        given = snapshot.gradient or {}
        pairs = [(p, after[n]) for n, p in before.items() if n in after]
        moved = self._taken.stepped or any(not torch.equal(p, now) for p, now in pairs)
        self._account.applied(moved, lambda: not_finite(given))
        if not self.faithful.checked:
            self._warn_of_lost_state()
        evaluated = not self.faithful.checked or self._agenda.evaluates
        evaluated = evaluated and (together or not self._world.several)
        self._tidy(before)
        snapshot = self._runner.governor.divided(snapshot) if evaluated else snapshot
        own = None if together else self._capture.own_share(self._taken.scale)
        self._tidy(before)
        started = time.perf_counter()
        if evaluated and self.faithful.check(snapshot, own, self._taken.scale):
            snapshot = self.snapshot(step, before, after, named, together)
        checking = time.perf_counter() - started
        self._tidy(before)
        known = not self._world.several or (snapshot.slopes and not self._world.sharded)
        hears = evaluated and self._world.first and known
        waited = self._world.waited
        for probe in self._agenda.in_order(self._runner.references):
            if probe is None:
                if hears and self._agenda.hears(self._runner.seconds, 2 * checking):
                    self._hear(snapshot)
                continue
            if self._agenda.waits(probe, self._runner.seconds):
                continue
            light = self._agenda.lightens(probe, checking)
            seen = replace(snapshot, light=True) if light else snapshot
            rows = self._runner.run(probe, seen, probe.name in self._agenda.together)
            self._tidy(before)
            if answers(probe, rows):
                self._agenda.answered.add(probe.name)
            if self._runner.refused and not self._capture.refused:
                self.faithful.refuse(self._runner.refused)
                snapshot = self.snapshot(step, before, after, named, together)
        self._account.measured(self._agenda.run)
        if together:
            took = sum(self._runner.seconds.values()) - (self._world.waited - waited)
            self._account.by_rank(self._world.each("seconds", took))

    def _hear(self, snapshot: Snapshot) -> None:
        """Take vital signs, as if they were a probe's."""
        started = time.perf_counter()
        self.vitals.take(snapshot, self._taken.scale)
        self._runner.seconds[VITAL] = time.perf_counter() - started
        if snapshot.parts > 1:  # memory is short: who else asks for a gradient makes it anew
            snapshot.slopes.clear()
        self._tidy(snapshot.before)

    def _tidy(self, before: Parameters) -> None:
        """Have what was freed given back, where a model is large and another evaluation follows."""
        if self._agenda.evaluates:
            tidy(before.values())

    def snapshot(
        self,
        step: int,
        before: Parameters,
        after: Parameters | None,
        named: dict[str, nn.Parameter],
        together: bool | None = None,
        waits: bool = True,
    ) -> Snapshot:
        """The step frozen.

        Args:
            step: its number.
            before: theta_t.
            after: theta_{t+1}; None outside of an optimizer step.
            named: the live parameters.
            together: whether all ranks measure it: the loss is then that of all of them. None:
                where no rank can by itself.
            waits: whether the device may be waited for; else the weights of its losses are not
                known, nor whether its gradient is the one that the optimizer was given.
        """
        training = self._capture.training(self._taken.scale if waits else None)
        if training is None:
            self._capture.follow()
        measured: Objective | None = training
        if self.probe_batch is not None:
            measured = self._capture.on(self.probe_batch, self._random)
        if not self.faithful.harmless(measured, before):
            training = measured = None
        if self._world.sharded if together is None else together:
            same = training is measured
            training = self._everywhere(training)
            measured = training if same else self._everywhere(measured)
        optimizers = self._watched.optimizers
        known = dict.fromkeys(type(o).__name__ for o in optimizers)
        own = self._taken.gradient if waits else self._taken.lent
        began = self._capture.pending.fresh or self._watched.held().keys()
        used = {n: p for n, p in named.items() if n in began}
        gradient = None if self._capture.pending.moved else own(used)
        return Snapshot(
            step=step,
            before=before,
            after=after,
            gradient=gradient,
            copied=self._taken.copied,
            finite=self._taken.finite,
            groups=parameter_groups(optimizers, named),
            optimizer="+".join(known),
            state=optimizer_state(optimizers, named),
            training=training,
            measured=measured,
            why_no_loss="" if measured else self._capture.why_none(),
            world=self._world,
            shards=self._world.shards,
            shared=self.shared,
            identity=identity(measured, before) if measured else (),
            seconds=self._agenda.seconds,
            told={OTHER: self.faithful.other},
        )

    def _everywhere(self, own: Objective | None) -> Objective | None:
        """The loss of all ranks, where each of them has one."""
        pieces = float(len(own.pieces)) if own is not None else 0.0
        told = [float(own is None), pieces, -pieces]
        try:
            with self._world.together("losses"):
                lacking, most, least = self._world.most("losses", told)
        except Retired:  # whoever measures says so
            return None
        if own is None or lacking:
            return None
        return Gathered.of(own, self._world, even=most == -least)

    def held_out(
        self, step: int, before: Parameters, batch: Any, loss_fn: LossFunction | None
    ) -> Snapshot:
        """The model between two steps on a batch that it does not train on: no step, no slope."""
        measured = self._capture.on(batch, self._random, loss_fn)
        if not self.faithful.harmless(measured, before):
            measured = None
        if self._world.sharded:
            measured = self._everywhere(measured)
        return Snapshot(
            step=step,
            before=before,
            after=None,
            gradient=None,
            groups=(),
            optimizer="",
            state={},
            training=None,
            measured=measured,
            why_no_loss="" if measured else self._capture.why_none(),
            world=self._world,
            shards=self._world.shards,
            shared=self.shared,
            identity=identity(measured, before) if measured else (),
            seconds=self._agenda.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "shared": self.shared.state_dict(),
            "vitals": self.vitals.kept(),
            "kept": sorted(self._runner.state_dict()),
            "checked": self.faithful.checked,
            "shapes": {n: list(s) for n, s in (self.shapes or {}).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; what is missing starts anew."""
        self.shared.load_state_dict(state.get("shared", {}))
        self.vitals.restore(state.get("vitals", ""))
        self.faithful.checked = bool(state.get("checked", False))
        self.shapes = {n: torch.Size(s) for n, s in state.get("shapes", {}).items()} or None
        self._loaded, self._unloaded = True, False

    def _warn_of_lost_state(self) -> None:
        if self._unloaded:
            self._journal.warn(
                "monitor",
                "resume=True, but load_state_dict() was not called: steps go on after the last "
                "recorded one, and drift is counted from here",
            )

    def settled(self, before: Parameters) -> bool:
        """Whether nothing about the loss or the parameters is to be found out first."""
        same = self.shapes == {n: p.shape for n, p in before.items()}
        return same and self.faithful.settled and not self._watched.cut

    def _parameters_changed(self, before: Parameters) -> None:
        """Start references anew where parameters were added, unfrozen, frozen or reshaped."""
        held = self._world.shards
        shapes = {n: held.piece(n, p).whole for n, p in before.items()}
        known, self.shapes = self.shapes, shapes
        if known is None or known == shapes or not self._runner.references:
            return
        loaded, self._loaded = self._loaded, False  # names may be others where a run goes on
        if loaded and list(known.values()) == list(shapes.values()):
            return
        gone, new = known.keys() - shapes.keys(), shapes.keys() - known.keys()
        self._runner.references.clear()
        self._journal.event(
            "warning",
            "monitor",
            f"the trainable parameters changed ({len(new)} more, {len(gone)} fewer): what is "
            "measured since the start, such as drift, is counted from this step on",
        )
