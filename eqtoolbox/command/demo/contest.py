"""A contest: how plain and enforced networks learn from fewer samples, and what an answer costs."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from eqtoolbox.command.demo.training import begun, descend, judged, learned
from eqtoolbox.demos.demo import Batch, Contest, Data, Demo, part, predict
from eqtoolbox.enforce.enforced import Enforced
from eqtoolbox.enforce.tied import Tied
from eqtoolbox.symmetry.structure import batch_size, first

ROUNDS = 7  # of timing, each of both networks


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The score of an entry that learned from so many samples: a mean over trainings."""

    samples: int
    score: float
    stderr: float  # over test samples and over trainings, which are few


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What an enforced network costs where the plain one costs 1."""

    forwards: float  # of the plain network an answer; 0: it has none
    scores: int  # of poses an answer
    step: float  # time of a training step
    answer: float  # time of an answer


@dataclass(frozen=True, kw_only=True)
class Bought:
    """What a contest measured."""

    curves: dict[str, list[Reached]]  # by entry, few samples first
    steps: int  # of each training
    seeds: int
    prices: dict[str, Paid]  # of the enforced entries


def contest(demo: Demo, asked: Contest, data: Data, steps: int | None = None) -> Bought:
    """Train the entries on fewer samples without the monitor, and time them side by side.

    Args:
        demo, asked, data: who learns what.
        steps: at most so many of each training.
    """
    count = asked.steps if steps is None else min(steps, asked.steps)
    return Bought(
        curves={
            e: [_point(demo, asked, e, data, k, count) for k in asked.every] for e in asked.entries
        },
        steps=count,
        seeds=asked.seeds,
        prices={e: price(demo, asked.plain, e, data) for e in asked.enforced},
    )


def fewer(batch: Batch, every: int) -> Batch:
    """Every so manieth sample of a batch, the first among them."""
    return part(batch, torch.arange(0, batch_size(batch[0]), every))


def _point(demo: Demo, asked: Contest, entry: str, data: Data, every: int, steps: int) -> Reached:
    some = Data(train=fewer(data.train, every), test=data.test)
    scores = [
        judged(demo, learned(demo, entry, some, steps=steps, seed=seed), some)
        for seed in range(asked.seeds)
    ]
    values = [score for score, _ in scores]
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Reached(
        samples=batch_size(some.train[0]) // asked.copies,
        score=statistics.fmean(values),
        stderr=math.hypot(spread, statistics.fmean(stderr for _, stderr in scores)),
    )


def price(demo: Demo, plain: str, enforced: str, data: Data) -> Paid:
    """Medians over rounds, in each of which both are timed; a tied network answers exported."""
    batch, asks = first(data.train, demo.batch), first(data.test[0], demo.batch)
    made = [begun(demo, entry) for entry in (plain, enforced)]
    asked = [n.export() if isinstance(n, Tied) else n for n, _ in made]

    def step(place: int) -> None:
        network, optimizer = made[place]
        descend(optimizer, demo.loss(predict(network, batch[0]), batch[1]))

    @torch.no_grad()
    def answer(place: int) -> None:
        predict(asked[place], asks)

    ratios = [
        [_seconds(call, 1) / _seconds(call, 0) for call in (step, answer)]
        for _ in range(ROUNDS + 1)
    ][1:]  # the first round warms up
    steps, answers = zip(*ratios, strict=True)
    network = made[1][0]
    return Paid(
        forwards=_forwards(type(made[0][0]), asked[1], asks) / batch_size(asks),
        scores=network.cost[1] if isinstance(network, Enforced) else 0,
        step=statistics.median(steps),
        answer=statistics.median(answers),
    )


def _seconds(call: Callable[[int], None], place: int) -> float:
    began = time.process_time()
    call(place)
    return time.process_time() - began


def _forwards(plain: type[nn.Module], network: nn.Module, asks: object) -> int:
    """Rows that go through the plain network that is inside another, or that is it."""
    rows = 0

    def count(_: nn.Module, inputs: tuple[object, ...]) -> None:
        nonlocal rows
        rows += batch_size(inputs)

    inside = [m for m in network.modules() if isinstance(m, plain)]
    handles = [m.register_forward_pre_hook(count) for m in inside]
    with torch.no_grad():
        predict(network, asks)
    for handle in handles:
        handle.remove()
    return rows
