"""Options: how a run is watched, as `attach`, the callbacks of frameworks and a monitor take it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from eqtoolbox.expect.bounds import OWN, Bound
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Location, Positive, Seed
from eqtoolbox.expect.words import shown
from eqtoolbox.record.chosen import Select
from eqtoolbox.record.schedule import Schedule
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.watch.allowed import check_allowance, check_share
from eqtoolbox.watch.budget import ALLOWANCE
from eqtoolbox.watch.journal import OnError
from eqtoolbox.watch.memory import PEAK, Limit, check_limit
from eqtoolbox.watch.probe import Probe, Scheduled
from eqtoolbox.watch.time_limit import Timeout, check_timeout

Probes = Annotated[str | Path | Sequence[Probe | Scheduled] | Mapping[str, Any], OWN]
Exist = Literal["error", "number", "replace"]
When = Annotated[int | Schedule | Mapping[str, int | Schedule] | None, OWN]
# a tensor has a method log, too
Tracker = Annotated[Any, Bound("a sink", lambda x: not isinstance(x, torch.Tensor), whole=True)]


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """How a run is watched: the keyword arguments of `eqtoolbox.attach` and of every callback.

    Args:
        loss_fn: `loss_fn(model, batch) -> scalar`.
        criterion: module called as `criterion(model(x), target)` in the loop.
        probes: "light", "standard", "full", a TOML file, or a list of probes.
        probe_batch: a fixed batch to measure on, instead of each step's own.
        schedule: when to measure, overriding the probes' own: every n-th step, a callable
            `step -> bool`, or a dict of these by probe name.
        budget: largest share of training time that the monitor may take, its set-up included;
            None for no limit, so that exactly the scheduled steps are measured. Within it every
            probe gets measurements that are spread evenly over the run; skips are recorded.
        allowance: seconds that it may take beside that share, so that short runs have curves, too.
        steps: number of the last optimizer step, counted from 1, where it is known: measurements
            are then spread evenly up to there. Callbacks of frameworks that know it tell it.
            Without, a run is planned for 400 steps, and then for twice those so far.
        memory: largest peak of memory as a multiple of training's own; probes that need more
            measure a part of the batch and say how many samples, keep fewer vectors, or are
            skipped (`skipped_memory`); of curvature `critical` then takes the place. None for no
            limit.
        probe_timeout: seconds that a probe may take at one step. After them it is stopped between
            two evaluations of the loss; rows up to there are kept, and after three times in a row
            it is disabled. "auto" is 20 times its longest run so far, at least 30 s, and 600 s
            for the first run; None is no limit.
        rank_timeout: seconds that the ranks of one training wait for each other, where several
            processes train together; after them all stop measuring, and training goes on.
        run_dir: directory for the records, held until the monitor is closed; None to keep none.
        sinks: further places for records: a SummaryWriter, a W&B run, the mlflow module, a function
            `(dict, step)`, anything with `.log(dict, step=)`, or an `eqtoolbox.Sink`; see
            `eqtoolbox.sinks.as_sink` for one that is to get other numbers than the others.
        select: which numbers trackers get: "main" for the dozen that matter, "all", or names, their
            beginnings and patterns, such as ["main", "curvature/*"].
        histograms: measure those of weights and gradients, and let trackers draw them.
        seed: of the probes' own random streams.
        on_error: "warn" records a failing probe and goes on, "raise" is for tests.
        resume: append to the run in `run_dir`; give the monitor its state back by
            `load_state_dict`, else steps go on after the last one recorded.
        exist: what to do where `run_dir` holds a run: "error", "number" (runs/nb-2, runs/nb-3, ...
            is taken) or "replace" (its files are removed). With `resume` it is appended to.
        sync: wait at each measured step until its rows in `run_dir` are on the disk itself. They
            survive the end of the process in any case; so they survive that of the machine.

    Raises:
        TypeError, ValueError: what was expected, what came, what to do.

    Example:
        >>> Options(budget=None).values()["seed"]
        0
    """

    loss_fn: LossFunction | None = None
    criterion: Annotated[nn.Module | None, OWN] = None
    probes: Probes = "standard"
    probe_batch: Any = None
    schedule: When = None
    budget: Annotated[float | None, OWN] = 0.05
    allowance: Annotated[float, OWN] = ALLOWANCE
    steps: Count | None = None
    memory: Limit = PEAK
    probe_timeout: Timeout = "auto"
    rank_timeout: Positive = 60.0
    run_dir: Location | None = None
    sinks: Sequence[Tracker] = ()
    select: Select = "main"
    histograms: bool = False
    seed: Seed = 0
    on_error: OnError = "warn"
    resume: bool = False
    exist: Exist = "error"
    sync: bool = False

    def __post_init__(self) -> None:
        check_share(self.budget)
        check_allowance(self.allowance)
        check_limit(self.memory)
        check_timeout(self.probe_timeout)
        if self.criterion is not None and not isinstance(self.criterion, nn.Module):
            raise TypeError(
                "criterion must be an nn.Module, whose calls can be seen, got "
                f"{self.criterion!r}; use e.g. nn.CrossEntropyLoss(), or decorate your loss "
                "function with @monitor.loss"
            )
        if getattr(self.loss_fn, "__module__", "") in TAKE_OUTPUTS:
            raise TypeError(
                f"loss_fn must be a function (model, batch) -> loss, got {shown(self.loss_fn)}, "
                "which takes outputs and targets; give criterion=nn.CrossEntropyLoss() or a like "
                "module, or a function that calls the model"
            )

    def values(self) -> dict[str, Any]:
        """The options by name, without what a subclass adds."""
        return {f.name: getattr(self, f.name) for f in fields(Options)}


TAKE_OUTPUTS = ("torch.nn.functional", "torch.nn.modules.loss")  # losses that take no model
