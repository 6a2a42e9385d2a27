"""What a measurement takes: of memory, of work and of traffic, from what its probe declares."""

from dataclasses import dataclass
from typing import Literal

from eqtoolbox.command.plan.network import ASPECT
from eqtoolbox.command.plan.setting import FORWARD, GIB, Training
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.watch.probe import Probe

Products = Literal["none", "exact", "differenced"]
PRODUCT, DIFFERENCE = 2.0, 2.0  # gradients that a product takes, on a retained graph or differenced
ROWS = 3  # of the basis in tracking that is planned: what two or three products need
FAMILIES = 3  # of charges that a rank sends for each of its parameters at most: heads over shards

# counted by benchmarks/planned.py
CHARGED = 2.0  # copies at a step after the first, at which symmetries are looked for
CHARGES = 5.0  # operations a parameter for each column of a head; other charges take a few in all
EXACT, DIFFERENCED = 5.0, 10.0  # copies beside the graph of one product: v, leaves, gradient, rows
GRADIENT = 1.5  # graphs of a plain gradient: what is saved, and gradients that are on their way
ERROR = 2.0  # products more that say how far a difference is off: `error_products`
FIRST = 1.0  # products more of the first difference: its step is a guess, and taken again
LAWS = 18.0, 5.0, 4.0  # forwards, gradients and products of the laws of a GPT's families
TOP = 40.0  # products of three pairs, the smallest and the optimizer's metric, from random starts


@dataclass(frozen=True, kw_only=True)
class Expense:
    """One measurement, in vectors of the model's size and evaluations of its loss.

    Forwards, gradients and products are those of `benchmarks/planned.py`, where the row is
    `measured`: counted in one process, which is what a rank does under DDP.
    """

    name: str
    copies: float  # vectors beside theta_t
    graphs: float  # times what autograd saves in one evaluation
    forwards: float = 0.0
    gradients: float = 0.0
    products: float = 0.0
    operations: float = 0.0  # floating point ones for each parameter that a rank holds
    by: Products = "none"
    measured: bool = True  # in one process; else by formula

    def bytes(self, training: Training) -> float:
        """Beside what a rank holds after a step.

        4 s (1 + copies) + graphs * saved + gathered: theta_t and the vectors; what autograd saves
        on the share of the batch in the probe's precision, of an exact product with the weights of
        attention and without checkpointing; the largest module in float32 (exact), or two blocks.
        """
        net, second = training.network, self.by == "exact"
        numbers = net.saved + net.squares if second else net.saved
        if training.checkpointing and not second:
            numbers = net.kept
        saved = training.probe_batch * training.itemsize(probe=True) * numbers
        gathered = training.gathered(probe=True) if self._evaluates else 0.0
        if second:
            gathered = 4 * net.module * (training.sharers > 1)
        return (1 + self.copies) * training.vector + self.graphs * saved + gathered

    def peak(self, training: Training) -> float:
        """Bytes of the whole at the measurement, over the peak of a training step."""
        return (training.held + self.bytes(training)) / training.peak

    def work(self, training: Training) -> float:
        """In that of a training step: forwards 1, gradients 3 (4 checkpointed), products 6."""
        plain = FORWARD * self.forwards + training.gradient * self.gradients
        each = PRODUCT * 3 * FORWARD if self.by == "exact" else DIFFERENCE * training.gradient
        whole = training.probe_batch * (plain + each * self.products)
        whole += self.operations * training.shard / training.network.operations
        return training.slowdown * whole / training.gradient

    def traffic(self, training: Training) -> float:
        """Bytes that a rank receives, in those of a training step.

        A gradient is a step's, in the probe's precision; a forward gathers all weights once where
        they are shared; an exact product gathers weights and v once and sums one vector.
        """
        gather = training.gather(training.itemsize(probe=True))
        gradient = training.traffic(probe=True)
        product = gather + training.gather(4) + training.reduce
        if self.by == "differenced":
            product = DIFFERENCE * gradient
        bytes_ = self.forwards * gather + self.gradients * gradient + self.products * product
        if not self._evaluates:
            bytes_ = FAMILIES * training.shard * (training.sharers > 1)
        return training.steps(bytes_)

    def apart(self, training: Training) -> int:
        """Every how many steps it may run within the budget.

        Whether a step waits for its work or its traffic, and however far they overlap, what takes
        w of the one and t of the other takes no more time than max(w, t) steps.
        """
        return training.within(max(self.work(training), self.traffic(training)))

    def fits(self, training: Training) -> bool:
        """Whether a rank's device has room for it."""
        return training.held + self.bytes(training) <= training.memory * GIB

    def known(self, training: Training) -> bool:
        """Whether memory and work were measured: in one process, or under DDP, where it is one."""
        return self.measured and training.sharers == 1

    @property
    def _evaluates(self) -> bool:
        return self.forwards + self.gradients + self.products > 0


def measurements() -> tuple[Expense, ...]:
    """What can be measured, the lightest first; copies and graphs as the probes declare them.

    Tracking by differences asks how far it is off, for two products more.
    """
    lean, spectrum, pictures = Tracking(rows=ROWS), Spectrum(), EquivarianceError()
    elements = len(pictures.symmetries) * (pictures.samples - 1)
    products = spectrum.matvecs + spectrum.probes * spectrum.steps
    return (
        Expense(
            name="conservation, every step", copies=CHARGED, graphs=0.0, operations=CHARGES * ASPECT
        ),
        _of(pictures, "equivariance", forwards=1.0 + elements, measured=False),
        _of(Discrete(pairs=0, laws=False), "discrete", forwards=1.0),
        Expense(
            name="critical sharpness, warm", copies=2.0, graphs=0.5, forwards=7.0, measured=False
        ),
        Expense(
            name="critical sharpness, cold", copies=2.0, graphs=0.5, forwards=14.0, measured=False
        ),
        Expense(
            name="curvature along the update",
            copies=DIFFERENCED,
            graphs=GRADIENT,
            products=1.0,
            by="differenced",
            measured=False,
        ),
        Expense(
            name="one product, exact",
            copies=EXACT,
            graphs=lean.graphs,
            gradients=1.0,
            products=1.0,
            by="exact",
        ),
        Expense(
            name="one product, differenced",
            copies=DIFFERENCED,
            graphs=GRADIENT,
            gradients=1.0,
            products=1.0 + FIRST,
            by="differenced",
        ),
        _of(lean, "tracking, exact", gradients=1.0, products=2.5, by="exact"),
        Expense(
            name="tracking, differenced",
            copies=lean.copies + DIFFERENCED - EXACT,
            graphs=GRADIENT,
            gradients=1.0,
            products=2.5 + ERROR + FIRST,
            by="differenced",
            measured=False,
        ),
        _of(
            Noether(), "noether", forwards=LAWS[0], gradients=LAWS[1], products=LAWS[2], by="exact"
        ),
        _of(Curvature(k=3), "top 3 (Lanczos)", gradients=1.0, products=TOP, by="exact"),
        _of(spectrum, "spectrum", gradients=1.0, products=float(products), by="exact"),
    )


def _of(
    probe: Probe,
    name: str,
    *,
    graphs: float | None = None,
    forwards: float = 0.0,
    gradients: float = 0.0,
    products: float = 0.0,
    by: Products = "none",
    measured: bool = True,
) -> Expense:
    return Expense(
        name=name,
        copies=probe.copies,
        graphs=probe.graphs if graphs is None else graphs,
        forwards=forwards,
        gradients=gradients,
        products=products,
        by=by,
        measured=measured,
    )
