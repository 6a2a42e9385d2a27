"""The training loop that all demos share: one network, watched by the probes of the demo's file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqtoolbox.attach.attach import attach
from eqtoolbox.attach.config import preset_path
from eqtoolbox.demos.demo import Batch, Data, Demo, batches, moved, predict
from eqtoolbox.enforce.tied import Tied
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.structure import first
from eqtoolbox.watch.options import Probes

_ERROR = "equivariance/relative_error/"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a network ended."""

    score: float  # fraction, on the test part
    stderr: float  # of the score, over test samples
    parameters: int  # those that are free, where some are tied
    errors: Mapping[str, Record]  # last relative error of each symmetry
    records: Sequence[Record]
    network: nn.Module


def train(
    demo: Demo,
    entry: str,
    data: Data,
    *,
    steps: int | None = None,
    probes: Probes | None = None,
    schedule: int | None = None,
    run_dir: str | None = None,
    sinks: tuple[Sink, ...] = (),
    seed: int = 0,
    after_step: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Train one entry of a demo with the monitor attached, and judge it on the test part.

    Args:
        demo, entry, data: which network on what; data as `demo.load()` gives them.
        steps: optimizer steps; the demo's own unless given.
        probes: those of configs/experiments/NAME.toml unless given.
        schedule: measure every so many steps; as the file says unless given.
        run_dir, sinks: where records go.
        seed: of the network, the order of the batches, their augmentation and the probes.
        after_step: called with step and loss.
    """
    steps = demo.steps if steps is None else steps
    memory = MemorySink()
    network, optimizer = begun(demo, entry, seed)
    with attach(
        network,
        optimizer,
        probes=preset_path(f"experiments/{demo.name}") if probes is None else probes,
        probe_batch=first(data.test, demo.watched) if demo.watched else None,
        schedule=schedule,
        budget=None,
        run_dir=run_dir,
        sinks=(memory, *sinks),
        seed=seed,
    ) as monitor:

        @monitor.loss
        def loss_fn(network: nn.Module, batch: Batch) -> Tensor:
            return demo.loss(predict(network, batch[0]), batch[1])

        for step, batch in enumerate(_decaying(demo, entry, data, optimizer, steps, seed)):
            loss = loss_fn(network, batch)
            descend(optimizer, loss)
            if after_step is not None:
                after_step(step, float(loss.detach()))
    score, stderr = judged(demo, network, data)
    errors = [r for r in memory.records if r.name.startswith(_ERROR)]
    return Outcome(
        score=score,
        stderr=stderr,
        parameters=free(network),
        errors={r.name.removeprefix(_ERROR): r for r in errors},
        records=memory.records,
        network=network,
    )


def learned(demo: Demo, entry: str, data: Data, *, steps: int, seed: int = 0) -> nn.Module:
    """The network that `train` ends with, without the monitor and without records."""
    network, optimizer = begun(demo, entry, seed)
    for batch in _decaying(demo, entry, data, optimizer, steps, seed):
        descend(optimizer, demo.loss(predict(network, batch[0]), batch[1]))
    return network


def begun(demo: Demo, entry: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network before its first step, with its optimizer."""
    chosen = demo.entries[entry]
    torch.manual_seed(seed)
    network = chosen.network()
    return network, (chosen.optimizer or demo.optimizer)(network.parameters())


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimizer."""
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def free(network: nn.Module) -> int:
    """How many parameters are free: of tied ones those that are left."""
    if isinstance(network, Tied):
        return network.weights[1]
    return sum(p.numel() for p in network.parameters())


def judged(demo: Demo, network: nn.Module, data: Data) -> tuple[float, float]:
    """The score of a network on the test part and its standard error."""
    network.eval()
    with torch.no_grad():
        return demo.score.of(predict(network, data.test[0]), data.test[1])


def _decaying(
    demo: Demo, entry: str, data: Data, optimizer: torch.optim.Optimizer, steps: int, seed: int
) -> Iterator[Batch]:
    """Batches, moved where the entry augments; the learning rate falls behind each if it does."""
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if demo.anneal else None
    rng, claim = torch.Generator().manual_seed(seed), demo.entries[entry].augment
    for batch in batches(data.train, demo.batch, steps, seed):
        yield batch if claim is None else moved(batch, claim, rng)
        if decay is not None:
            decay.step()
