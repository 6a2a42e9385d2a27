"""The runner: due probes measure a snapshot, each in isolation, paid for and never fatal."""

import hashlib
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eqtoolbox.expect.deadline import OutOfTime, check, clock, deadline, uncounted
from eqtoolbox.linalg.finite_difference import Kinked
from eqtoolbox.record.record import Record
from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.thread.scope import LeavesTrace, current
from eqtoolbox.replay.tree import check_batch
from eqtoolbox.watch.device import free, synchronize
from eqtoolbox.watch.interrupts import told
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.memory import Governor, out_of_memory, samples
from eqtoolbox.watch.probe import UNMEASURED, Measurement, Probe, ours, record
from eqtoolbox.watch.rows import ended, headline, in_place_of, leaner_by, noted, on_part
from eqtoolbox.watch.snapshot import REMEDIES, REMEDY, NoRoom, NotApplicable, Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.watch.time_limit import TimeLimit
from eqtoolbox.world.reducing import reducing
from eqtoolbox.world.world import Retired, World

SHARDS = "it takes whole parameters, of which each process holds a part here"
WITHIN = "to stay within memory="
HALF = "on the first half of the batch: the whole did not fit into memory"


class Runner:
    """Runs probes and writes their records.

    A probe that raises, whatever it raises, is a `failed` record and is disabled after three in a
    row; so is one that takes longer than its time limit. One that runs out of memory is tried
    again on half of its batch, and stays on half; if that does not fit either it is disabled.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        journal: Journal,
        limit: TimeLimit,
        governor: Governor,
        world: World | None = None,
    ) -> None:
        self.references: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}  # that each probe took at this step
        self.once: dict[str, float] = {}  # of these, those that no later run takes again
        self.refused = ""  # why no probe may evaluate the loss any more
        self.halved: set[str] = set()  # probes that measure half of a batch
        self._model, self._seed = model, seed
        self._journal = journal
        self._limit = limit
        self.governor = governor
        self._world = world or World()
        self._together = False
        self._told: set[str] = set()  # probes of which it was said that they do not fit
        self._instead: Probe | None = None  # of the probe that has just found no room

    def run(
        self,
        probe: Probe,
        snapshot: Snapshot,
        together: bool | None = None,
        launched: float | None = None,
    ) -> list[Record]:
        """Measure and write; `take` tells what it took.

        Args:
            probe: that measures.
            snapshot: what it measures.
            together: whether all ranks do, and not this one by itself; None: where they must.
            launched: seconds that launching it took, where it only reads: nothing else is waited
                for.
        """
        self._together = self._world.sharded if together is None else together
        snapshot = snapshot if self._together else snapshot.of_one()
        started, self.once[probe.name] = time.perf_counter(), 0.0
        snapshot.products.clear()
        with deadline(self._limit.of(probe.name)):
            rows, fits = self._measured(probe, snapshot)
            if not fits:
                rows = self._on_half(probe, snapshot)
        for row in rows:
            if row.quantity == UNMEASURED:
                said = f"the claim {row.target} is not measured by {probe.name}: {row.note}"
                self._journal.warn(probe.name, said)
        if launched is None:
            synchronize(self._model)
        seconds = time.perf_counter() - started + (launched or 0.0)
        self.seconds[probe.name] = seconds
        told: dict[str, Any] = {"step": self._journal.step, "segment": self._journal.segment}
        told["hessian"] = max(snapshot.products, default=None)  # held, where a part of it is
        written = self._journal.write_all([record(row, probe, seconds, **told) for row in rows])
        for row, written_row in zip(rows, written, strict=True):
            if row.vector is not None:
                self._journal.array(written_row.name, row.vector)
        matvecs = sum(row.matvecs or 0 for row in rows)
        written.append(self._journal.emit(f"cost/seconds/{probe.name}", seconds, unit="s"))
        if matvecs:
            written.append(self._journal.emit(f"cost/matvecs/{probe.name}", float(matvecs)))
        return written + self._in_its_place(probe, snapshot, together)

    def _in_its_place(
        self, probe: Probe, snapshot: Snapshot, together: bool | None
    ) -> list[Record]:
        """What is measured for a probe that found no room, on its account."""
        other, self._instead = self._instead, None
        if other is None or other.name in (*self.seconds, *self._journal.disabled):
            return []
        written = self.run(other, replace(snapshot, light=False), together)
        for spent in (self.seconds, self.once):
            spent[probe.name] += spent.pop(other.name)
        return written

    def reference(self, probe: Probe) -> Any:
        """What the probe compares with; it has one."""
        made = self.references[probe.name] = probe.restored(self.references[probe.name])
        return made

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of each probe since the last `take`, and those that no later run takes again."""
        taken = self.seconds, self.once
        self.seconds, self.once = {}, {}
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What the references of all probes are, as plain values; of shards no vectors."""
        whole, every = not self._world.sharded, self.references.items()
        kept = {n: made for n, made in every if whole or not getattr(made, "large", False)}
        return {n: s.state_dict() if isinstance(s, State) else s for n, s in kept.items()}

    def load_state_dict(self, saved: dict[str, Any], probes: Iterable[Probe]) -> None:
        """Go on from these references; those with vectors begin anew where shards are held."""
        anew = {p.name for p in probes if self._world.sharded and p.state and p.state.large}
        self.references = {name: made for name, made in saved.items() if name not in anew}

    def fail(self, probe: Probe, error: BaseException) -> Record:
        """Record that nothing could be measured at all."""
        return self._write(headline(probe, "failed", told(error)), probe)

    def _measured(self, probe: Probe, snapshot: Snapshot) -> tuple[list[Measurement], bool]:
        """What the probe yields, ended by a row that says what went wrong; and if it fits."""
        rows: list[Measurement] = []
        used, lean = 0, probe  # samples, where they are not all, and who measured
        began = time.perf_counter()
        rng = self._generator(probe, snapshot.step)
        try:
            if probe.name in self.halved:
                snapshot = snapshot.halved()
            known = probe.name in self.references
            evaluates = probe.evaluates or not known
            draws = not ours(probe)
            isolation = isolated_for(snapshot, self._model, draws) if evaluates else nullcontext()
            with self._scope(f"{probe.name} at step {snapshot.step}"), isolation, self._clock():
                if snapshot.broken:
                    raise FloatingPointError(f"{snapshot.broken} holds NaN or infinity")
                if self._world.sharded and not probe.sharded:
                    raise NotApplicable(SHARDS)
                replay = current()
                if replay is not None:  # a loss may write into the parameters that it is given
                    replay.protect(snapshot.before)
                if snapshot.measured is not None and evaluates:
                    check_batch(snapshot.measured.batch, self._model)
                if evaluates:
                    with uncounted():
                        snapshot = self.governor.limited(snapshot)
                if not known:
                    started = time.perf_counter()
                    self.references[probe.name] = probe.reference(snapshot, rng)
                    self.once[probe.name] += time.perf_counter() - started
                if probe.evaluates:
                    with uncounted():
                        lean, snapshot, used = self.governor.fitted(probe, snapshot)
                made = snapshot.shared.seconds
                reference = self.reference(probe)
                try:
                    rows.extend(lean.measure(snapshot, reference, rng))
                    self._same_draws(rng)
                finally:  # what is found out for the whole run is not paid for again
                    self.once[probe.name] += snapshot.shared.seconds - made
            check()  # a probe that evaluates nothing cannot be stopped, but its time is up, too
        except Retired as reason:
            rows.append(headline(probe, "failed", str(reason)))
        except LeavesTrace as reason:
            rows.append(headline(probe, "not_applicable", str(reason)))
            self.refused = str(reason)
        except NoRoom as reason:
            rows.append(headline(probe, "skipped_memory", str(reason)))
            other = self._instead = in_place_of(probe, self._journal.failed)
            if probe.name not in self._told:
                self._told.add(probe.name)
                instead = f"; {other.name} is measured in its place" if other else ""
                self._journal.warn(probe.name, f"{probe.name} is left out: {reason}{instead}")
        except NotApplicable as reason:
            row = headline(probe, "not_applicable", str(reason))
            lacks = any(remedy in row.note for remedy in REMEDIES)
            rows.append(replace(row, facts={"remedy": REMEDY}) if lacks else row)
        except Kinked as reason:
            why = f"the loss has no second derivative that differences could stand in for: {reason}"
            ended(rows, probe, "not_applicable", why)
        except FloatingPointError as reason:
            ended(rows, probe, "non_finite", str(reason))
        except OutOfTime:
            self._stopped(probe, rows, time.perf_counter() - began)
        except BaseException as error:
            if out_of_memory(error):
                return [], False
            ended(rows, probe, "failed", told(error))
            self._journal.failed(probe.name, error)
        else:
            self._journal.succeeded(probe.name)
            took = time.perf_counter() - began - self.once[probe.name]
            self._limit.learn(probe.name, took)
        if used or probe.name in self.halved:
            said = f"on {used} samples of the batch, {WITHIN}" if used else HALF
            rows = [on_part(row, said, samples(snapshot.measured)) for row in rows]
        if lean is not probe:
            rows = [noted(row, f"with {leaner_by(lean, probe)}, {WITHIN}") for row in rows]
        return rows, True

    @contextmanager
    def _scope(self, what: str) -> Iterator[None]:
        """Scope of a probe: of all ranks, or of this one by itself."""
        if self._together:
            with self._world.together(what), reducing(self._world):
                yield
        else:
            with self._world.alone():
                yield

    def _clock(self) -> AbstractContextManager[None]:
        """Where ranks measure together, by the clock of the first."""
        if not self._together:
            return nullcontext()
        return clock(lambda: self._world.decided("clock", [time.perf_counter()])[0])

    def _same_draws(self, rng: torch.Generator) -> None:
        """Refuse numbers for which ranks drew different random vectors."""
        if self._world.inside:
            state = float(zlib.crc32(rng.get_state().numpy().tobytes()))
            most, least = self._world.most("draws", [state, -state])
            if most != -least:
                raise RuntimeError("ranks drew different random numbers in this probe")

    def _stopped(self, probe: Probe, rows: list[Measurement], seconds: float) -> None:
        """End the rows of a probe whose time was up; those that it has are kept."""
        why = self._limit.exceeded(probe.name, seconds)
        whole = [k for k, row in enumerate(rows) if row.quantity == probe.headline]
        for k in whole:
            rows[k] = noted(rows[k], why)
        if not whole:
            rows.append(headline(probe, "failed", why))
        self._journal.failed(probe.name, OutOfTime(why))

    def _on_half(self, probe: Probe, snapshot: Snapshot) -> list[Measurement]:
        """A second try, for a probe that ran out of memory."""
        name = probe.name
        if name not in self.halved and snapshot.divisible:
            self._journal.warn(
                name,
                f"{name} ran out of memory; from step {snapshot.step} on it measures half of "
                "its batch",
            )
            self.halved.add(name)
            free()
            rows, fits = self._measured(probe, snapshot)
            if fits:
                return rows
        free()
        self._journal.disable(name, f"{name} is disabled: it ran out of memory on half of a batch")
        note = "out of memory, on half of the batch, too: disabled"
        return [headline(probe, "failed", note)]

    def _generator(self, probe: Probe, step: int) -> torch.Generator:
        """Own stream per (seed, step, probe): results do not depend on what else is measured."""
        digest = hashlib.sha256(f"{self._seed}/{step}/{probe.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _write(self, measurement: Measurement, probe: Probe) -> Record:
        return self._journal.write(record(measurement, probe))


def isolated_for(snapshot: Snapshot, model: nn.Module, draws: bool = False) -> Any:
    """The scope in which a snapshot may be measured."""
    objective = snapshot.measured or snapshot.training
    return isolated(model) if objective is None else objective.isolated(draws=draws)
