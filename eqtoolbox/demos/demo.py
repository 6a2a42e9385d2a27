"""A demo: a small real problem, the networks that compete on it, and the laws of its data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.record.record import Verdict
from eqtoolbox.report.figures import Panel
from eqtoolbox.symmetry.asymmetry import DataAsymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree, batch_size, on_tensors

Maker = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = tuple[Tree, Tree]  # inputs and targets; a tuple of inputs holds the network's arguments


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples to learn from and samples to judge by."""

    train: Batch
    test: Batch


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network that takes part."""

    network: Callable[[], nn.Module]
    augment: Equivariance | None = None  # every training batch is moved by a random element of it
    optimizer: Maker | None = None  # the demo's own unless given


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How good predictions are, as a fraction."""

    name: str  # such as "accuracy"
    of: Callable[[Any, Any], tuple[float, float]]  # (outputs, targets) -> value, standard error
    rising: bool = False  # True: more is better


@dataclass(frozen=True, kw_only=True)
class PhysicalLaw:
    """A symmetry of the data, measured on them or on what made them and not on a network."""

    text: str  # in words: "The simulator commutes with quarter turns"
    result: EquivarianceResult | DataAsymmetry
    control: bool = False  # True: a claim that must fail, else the check could not see anything


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number of a trained network beside what chance alone makes of it."""

    value: float
    floor: float
    verdict: Verdict  # whether it is chance: holds


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Enforced against plain: which entries, and how they learn from fewer samples."""

    enforced: tuple[str, ...]  # entries
    plain: str = "plain"  # entry
    every: tuple[int, ...] = (16, 4, 1)  # take every so manieth training sample
    steps: int = 200  # of each of these trainings
    seeds: int = 2  # trainings of each size
    copies: int = 1  # rows of the training part that are one sample

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.plain, *self.enforced)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything that `train` needs; `configs/experiments/NAME.toml` has its probes."""

    name: str
    title: str  # what is trained on what, to be read behind "Training"
    load: Callable[[], Data]
    entries: Mapping[str, Entrant]  # by the name of their run directory
    loss: Callable[[Any, Any], Tensor]  # (outputs, targets) -> scalar
    score: Standing
    optimizer: Maker
    steps: int
    batch: int  # samples
    anneal: bool = False  # the learning rate falls to zero as a half cosine
    watched: int = 0  # test samples that the probes measure on; 0: the training batch itself
    laws: Callable[[Data], list[PhysicalLaw]] = lambda _: []
    made: Callable[[nn.Module], Mapping[str, Measured]] = lambda _: {}  # of a trained network
    contest: Contest | None = None
    drawn: Callable[[Mapping[str, nn.Module]], list[Panel]] = lambda _: []  # of trained networks


def predict(network: nn.Module, inputs: Tree) -> Any:
    """The network's outputs; a tuple of inputs holds its arguments."""
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def part(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, by their indices (n,)."""
    chosen: Batch = on_tensors(lambda x: x[rows], batch)
    return chosen


def batches(data: Batch, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` shuffled batches, epoch after epoch; what is left of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    count, done = batch_size(data[0]), 0
    while True:
        for rows in torch.split(torch.randperm(count, generator=generator), size):
            if done == steps:
                return
            if len(rows) == min(size, count):
                yield part(data, rows)
                done += 1


def moved(batch: Batch, claim: Equivariance, generator: torch.Generator) -> Batch:
    """A batch at another point of its orbit, (S_g x, R_g y) for one random g."""
    (g,) = claim.group.sample(1, generator)
    return claim.input_action(g, batch[0]), claim.output_action(g, batch[1])
