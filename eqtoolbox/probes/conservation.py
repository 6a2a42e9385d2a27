"""Conserved quantities: how far they drifted, and what made them drift."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.linalg.vectors import not_finite
from eqtoolbox.probes.balance import balance
from eqtoolbox.probes.drift import Drift
from eqtoolbox.probes.forecast import report
from eqtoolbox.probes.law_noise import law_noise
from eqtoolbox.probes.ledger import CAUSES, Exact, Ledger
from eqtoolbox.probes.leftover import sizes
from eqtoolbox.probes.passes import Passes, StepPass
from eqtoolbox.probes.symmetries import charges as charges_of
from eqtoolbox.record.record import Mode
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.shared import Shared
from eqtoolbox.watch.snapshot import OTHER, NotApplicable, Snapshot
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.charges import ChargeReading, Charges
from eqtoolbox.world.shards import Shards


@checked
@dataclass(frozen=True, kw_only=True)
class Conservation(Probe):
    """Drift of the charges Q of every symmetry, and its exact budget over one step.

    For an update d of parameters theta with gradient g, learning rate eta and decay gamma (each
    per parameter group), and generators K = grad Q:

        Q(theta + d) - Q(theta) = symmetry    -eta <K, g>          zero while the symmetry holds
                                + decay       -eta gamma <K, theta>
                                + optimizer   <K, d + eta (g + gamma theta)>   zero for plain SGD
                                + finite_step (Q(d) for quadratic, 0 for linear charges)

    Where eta differs between the parameters of a symmetry, the first term is at the largest, and
    `learning_rates`, sum_n (eta - eta_n) <K_n, g_n>, is what the others being smaller does.

    An equivariance f(T theta) = R f(theta) moves its charge: its first term is `implicit_bias`,
    -eta c with c = <K, g> = <dl/dy, rho(y)>. `first_order` is |<K, g>| / (|K| |g|) over all
    generators of a family, the law g . K = 0 as the training gradient itself shows it. Of an
    approximate symmetry it is judged by what the epsilon of its normalisation predicts, where
    `eqtoolbox.probes.noether` found that at the same step: `epsilon` is what p leaves of it. At
    other steps it is violated where it exceeds by far what was left when that was last known,
    which grows as the weights shrink, and above rounding it is undecided.

    What is done to parameters between two steps, as `eqtoolbox.act` does, moves charges by `act`,
    which is no step's: it is counted where it happened.

    Numbers are norms over all units of a family, relative to the norm of the charges' scale: what
    |Q| could be at these parameter sizes and, for drifts since the start, at those of the start,
    whichever is larger. A cause is counted along the drift, so that the
    budget's terms add up to the step's drift and the shares, with `share_unmeasured`, to 1.
    Shares since the start take each measured step as typical of those since the last measured.

    Beside them stand closed forms of SGD with decay and momentum: `forecast`, the drift that they
    predict, with `forecast_error`, how far the charges are from it (`probes.forecast`);
    `angular_update` of scale-symmetric weights, with `equilibrium_angle` (`probes.balance`).

    Drift, its worst unit and the first-order law are recorded at every due step. Budgets are
    summed up at every due step too; they, the vectors over units and `closure` are recorded when
    the step has grown by `growth` since they last were: at each of the first 1 / `growth` steps.

    A general linear group of more than 16 dimensions has d (d + 1) / 2 charges a block (a head).
    At every step a few random elements of its algebra, drawn once, stand for all of them: laws and
    charges are linear in the generator, each element's own law and budget are exact, and the norms
    over the family are unbiased in their squares, with their standard errors beside them (about
    0.2 of one block's norm for a dense matrix and 0.5 for one of rank one, less by the root of the
    number of blocks). Its worst unit is a block. A broken law of one block shows less than a tenth
    of its size with a probability below 1 %. On kept steps drift and vectors are those of all
    charges; the causes remain those of the random elements.

    Args:
        growth: share by which the step grows between two records of budgets and vectors; 0 keeps
            every due step.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447) for the laws; Hutchinson 1990 for random signs.

    Example:
        >>> Conservation(growth=0).growth  # budgets at every due step
        0
    """

    name: ClassVar[str] = "conservation"
    headline: ClassVar[str] = "drift"
    sharded: ClassVar[bool] = True
    mode: ClassVar[Mode] = "train"
    graphs: ClassVar[float] = 1.5
    copies: ClassVar[float] = 6.0
    evaluates: ClassVar[bool] = False
    state: ClassVar[type[State]] = Ledger

    growth: float = 0.01

    def __post_init__(self) -> None:
        if not self.growth >= 0:
            raise ValueError(f"growth must be >= 0 (0 keeps every due step), got {self.growth}")

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> Ledger:
        charges = charges_of(snapshot)
        if not any(m.charges for m in charges.members):
            raise NotApplicable("the symmetries found conserve nothing")
        ledger = Ledger(of=charges.labels, begun=snapshot.step, measured=snapshot.step - 1)
        sketched = ledger.read(charges, charges.read(snapshot.before))
        ledger.start, ledger.reach = ledger.values, ledger.scales
        own = torch.promote_types(snapshot.before[charges.names[0]].dtype, torch.float32)
        for family, (values, scales, _) in sketched.items():  # as precise as what they are of
            ledger.sketched[family] = values.to("cpu", own)
            ledger.sketched_reach[family] = scales.to("cpu", own)
        ledger.causes = ledger.values.new_zeros(len(CAUSES), charges.count)
        ledger.noise, ledger.leftover.left = law_noise(snapshot, charges, ledger.lengths, rng)
        ledger.leftover.sizes = sizes(snapshot.before, snapshot.shards).cpu()
        return ledger

    def measure(
        self, snapshot: Snapshot, reference: Ledger, rng: torch.Generator
    ) -> Iterator[Measurement]:
        if snapshot.after is None:
            raise NotApplicable("no optimizer step here: drift is measured in step()")
        with torch.autocast(next(iter(snapshot.before.values())).device.type, enabled=False):
            yield from self._measure(snapshot, snapshot.after, reference, rng)

    def acted(
        self, before: Parameters, after: Parameters, reference: Ledger, shared: Shared
    ) -> None:
        reference.act(shared.newest("charges"), before, after)

    def ask(self, snapshot: Snapshot, reference: Ledger, parcel: Parcel) -> Passes | None:
        charges: Charges | None = snapshot.shared.known("charges", snapshot.identity)
        if snapshot.after is None or charges is None:
            return None
        reads = self._keeps(reference, snapshot.step) or reference.born_at_zero
        waits = charges.meet and (reads or reference.unseen_at(snapshot.step))
        if waits or reference.stale or not reference.knows(charges):
            return None
        return self._passes(charges, snapshot, snapshot.after, reference, parcel)

    def _keeps(self, state: Ledger, step: int) -> bool:
        """Whether budgets and vectors are recorded at this step."""
        return state.kept is None or step >= max(state.kept + 1, state.kept * (1 + self.growth))

    def _passes(
        self,
        charges: Charges,
        snapshot: Snapshot,
        after: Parameters,
        state: Ledger,
        parcel: Parcel,
    ) -> Passes:
        """All that is taken of the step's tensors: launched, and not waited for."""
        keep = self._keeps(state, snapshot.step)
        unseen, approximate = state.unseen_at(snapshot.step), bool(state.leftover.left)
        return Passes(
            before=charges.read(snapshot.before, parcel) if unseen else None,
            step=StepPass.of(charges, snapshot, after, approximate, parcel),
            after=charges.read(after, parcel) if keep or state.born_at_zero else None,
            keep=keep,
        )

    def _measure(
        self, snapshot: Snapshot, after: Parameters, state: Ledger, rng: torch.Generator
    ) -> Iterator[Measurement]:
        charges = charges_of(snapshot)
        if not state.knows(charges):
            vars(state).update(vars(self.reference(snapshot, rng)))
        if state.stale:
            if state.unseen_at(snapshot.step):
                state.caught_up(charges, charges.read(snapshot.before), snapshot.step)
            found = law_noise(snapshot, charges, state.lengths, rng)
            (state.noise, state.leftover.left), state.stale = found, False
        passes = snapshot.asked or self._passes(charges, snapshot, after, state, Parcel())
        since = snapshot.step - state.measured
        if passes.before is not None:
            state.caught_up(charges, passes.before, snapshot.step)
        change, beside, why = passes.step.told(state.values, snapshot.gradient is not None)
        finite = bool(beside.after.isfinite().all())
        if not finite and (lost := _lost(after, snapshot.shards)):
            raise FloatingPointError(f"the step made {lost} NaN or infinite")
        size = beside.size
        state.values = state.values + change.drift
        state.steps += 1
        state.measured = snapshot.step
        state.forecast.advance(
            charges,
            snapshot,
            change,
            values=state.values,
            start=state.start,
            stepped=math.isfinite(size),
        )
        if not why:
            causes = change.causes
            state.causes = state.causes + since * torch.stack([causes[cause] for cause in CAUSES])
        left = state.leftover
        noise, epsilon = left.told(snapshot, charges, size, state.lengths, state.scales)
        predicted, steps = state.values, state.steps
        scales = _grown(state.scales, charges, passes.after)
        exact: Exact = {}
        if passes.keep:
            assert passes.after is not None, "what is kept was read"
            exact, state.kept = state.read(charges, passes.after), snapshot.step
        drift = Drift(
            charges=charges,
            change=change,
            state=state,
            scales=scales,
            eps=_eps(snapshot),
            why=why,
            known=passes.step.known,
            exact=exact,
            noise=noise,
            shrunk=left.shrunk(beside.weights),
            epsilon=epsilon,
            other=snapshot.told.get(OTHER, ""),
        )
        yield from drift.every_step(snapshot.step, size)
        if passes.keep:
            yield from drift.closure(predicted - state.values, steps)
            yield from drift.vectors()
            yield from drift.budget()
            state.acted = None
            if snapshot.gradient is not None and math.isfinite(size):
                yield from balance(charges, snapshot, change, state.values, state.balance)
            yield from report(charges, state.forecast, state.values, drift.reach, drift.eps)


def _grown(scales: Tensor, charges: Charges, after: ChargeReading | None) -> Tensor:
    """The scales before a step; after it where parameters were born at zero."""
    if after is None or bool((scales > 0).all()):
        return scales
    return torch.where(scales > 0, scales, charges.scales(after))


def _lost(after: Parameters, shards: Shards) -> str:
    """The first parameter that is NaN or infinite, wherever it is held; empty if none is."""
    own = [bool(not_finite({name: tensor})) for name, tensor in after.items()]
    every = shards.added(torch.tensor(own, dtype=torch.float64), next(iter(after.values())))
    return next((name for name, lost in zip(after, every.tolist(), strict=True) if lost), "")


def _eps(snapshot: Snapshot) -> float:
    return max(torch.finfo(dtype).eps for dtype in {p.dtype for p in snapshot.before.values()})
