"""Experiments: a published result, the same done small, and a verdict that its figures decide."""

import itertools
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Batch
from eqtoolbox.demos.digits import load_digits

Figures = dict[str, Any]  # what is measured -> its value, of one seed
Values = Mapping[str, Sequence[float]]  # what is measured -> one value a seed
PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One published claim and the small version of it."""

    name: str
    claim: str  # as the paper has it
    paper: str  # author, year, arXiv
    reference: str  # what the paper measured
    runs: Sequence[Callable[[int], Figures]]  # of a seed; experiments may share them
    picks: Sequence[str] = ("",)  # how those of their figures begin that are told here
    judge: Callable[[Values], str]  # of all seeds; the words of the verdict
    note: str  # the setting here
    seeds: int = 3


def measured(
    experiments: Sequence[Experiment], processes: int = PROCESSES
) -> tuple[dict[str, Any], dict[Any, Figures]]:
    """A row for each experiment, and what each run and seed found: jobs of one thread each."""
    jobs = {(run, seed): None for e in experiments for run in e.runs for seed in range(e.seeds)}
    found = dict(zip(jobs, in_processes(list(jobs), processes), strict=True))
    seeds_of = lambda run, e: [found[run, seed] for seed in range(e.seeds)]
    return {e.name: row(e, [seeds_of(run, e) for run in e.runs]) for e in experiments}, found


def in_processes(
    jobs: Sequence[tuple[Callable[..., Figures], Any]], processes: int = PROCESSES
) -> list[Figures]:
    """What each job returns, in order; each is a function and what it is called with."""
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_alone) as pool:
        return pool.map(_done, jobs, chunksize=1)


def row(experiment: Experiment, runs: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """What is stored of an experiment, from the figures of each of its runs and seeds."""
    values = {
        key: [figures[key] for figures in seeds]
        for seeds in runs
        for key in seeds[0]
        if key.startswith(tuple(experiment.picks))
    }
    return {
        "claim": experiment.claim,
        "paper": experiment.paper,
        "reference": experiment.reference,
        "setting": experiment.note,
        "figures": {k: [v if math.isfinite(v) else None for v in of] for k, of in values.items()},
        "verdict": experiment.judge(values),
    }


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _alone() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _done(job: tuple[Callable[..., Figures], Any]) -> Figures:
    run, given = job
    return run(given)


def perceptron(
    widths: Sequence[int], activation: type[nn.Module] = nn.ReLU, seed: int = 0
) -> nn.Sequential:
    """Linear layers of these widths on flattened inputs, drawn with a seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, next_wide in itertools.pairwise(widths):
        layers += [nn.Linear(wide, next_wide), activation()]
    return nn.Sequential(*layers[:-1])


def digits() -> tuple[Batch, Batch]:
    """1,437 images to train on and 360 to judge by."""
    data = load_digits()
    return data.train, data.test


@torch.no_grad()
def accuracy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    return float((model(batch[0]).argmax(1) == batch[1]).float().mean())
