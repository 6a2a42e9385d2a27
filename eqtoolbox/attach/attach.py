"""Attach: from what a user writes to a monitor at work."""

import platform
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from eqtoolbox.attach.config import Probes, When, describe, resolve
from eqtoolbox.expect.bounds import Bound
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Location, Seed
from eqtoolbox.expect.words import shown
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.tree import check_batch, tensors
from eqtoolbox.replay.unwrap import (
    optimizers_in,
    other_process,
    processes,
    refuse_engine,
    refuse_sharded,
    unwrapped,
)
from eqtoolbox.sinks.adapter import as_sink
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.watch.budget import check_share
from eqtoolbox.watch.journal import OnError, logger
from eqtoolbox.watch.monitor import Monitor, monitors_of
from eqtoolbox.watch.probe import Scheduled
from eqtoolbox.watch.snapshot import parameter_groups, trainable
from eqtoolbox.watch.time_limit import Timeout, check_timeout

# a tensor has a method log, too
Tracker = Annotated[Any, Bound("a sink", lambda x: not isinstance(x, torch.Tensor), whole=True)]


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer
    | Iterable[torch.optim.Optimizer]
    | Mapping[Any, torch.optim.Optimizer],
    *,
    loss_fn: LossFunction | None = None,
    criterion: nn.Module | None = None,
    probes: Probes = "standard",
    probe_batch: Any = None,
    schedule: When = None,
    budget: float | None = 0.05,
    probe_timeout: Timeout = "auto",
    run_dir: Location | None = None,
    sinks: Sequence[Any] = (),
    seed: Seed = 0,
    on_error: OnError = "warn",
    resume: bool = False,
    sync: bool = False,
) -> Monitor:
    """Watch `model` as `optimizer` trains it; training itself stays bit-identical.

    Probes that evaluate the loss need to know it. In order of precedence: decorate it with
    `monitor.loss`; give `loss_fn` and call `monitor.observe(batch)` each step (or give
    `probe_batch`); give the `criterion` module that the loop calls on the model's output; or have
    a model that returns its own loss.

    Args:
        model: any module with trainable parameters; DistributedDataParallel and torch.compile are
            looked into. Of several processes the first measures, on its own share of the batch.
        optimizer: the one whose `step()` counts; a wrapper's own `.optimizer` is found. Several
            that train the model together are given as a list or a dict: one step is over when
            each has stepped.
        loss_fn: `loss_fn(model, batch) -> scalar`.
        criterion: module called as `criterion(model(x), target)` in the loop.
        probes: "light", "standard", "full", a TOML file, or a list of probes.
        probe_batch: a fixed batch to measure on, instead of each step's own.
        schedule: when to measure, overriding the probes' own: every n-th step, a callable
            `step -> bool`, or a dict of these by probe name.
        budget: largest share of training time that the monitor may take, set-up (the first run of
            each probe) apart; None for no limit, so that exactly the scheduled steps are measured.
            Skips are recorded.
        probe_timeout: seconds that a probe may take at one step. After them it is stopped between
            two evaluations of the loss; rows up to there are kept, and after three times in a row
            it is disabled. "auto" is 20 times its longest run so far, at least 30 s, and 600 s
            for the first run; None is no limit.
        run_dir: directory for the records, held until the monitor is closed; None to keep none.
        sinks: further places for records: a SummaryWriter, a W&B run, the mlflow module, a function
            `(dict, step)`, anything with `.log(dict, step=)`, or an `eqtoolbox.Sink`.
        seed: of the probes' own random streams.
        on_error: "warn" records a failing probe and goes on, "raise" is for tests.
        resume: append to the run in `run_dir`; give the monitor its state back by
            `load_state_dict`, else steps go on after the last one recorded.
        sync: wait at each measured step until its rows in `run_dir` are on the disk itself. They
            survive the end of the process in any case; so they survive that of the machine.

    Returns:
        The attached monitor; `close()` it at the end, or use it as a context manager.

    Raises:
        TypeError, ValueError, FileExistsError, OSError: what was expected, what came, what to do.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = attach(model, optimizer, criterion=nn.MSELoss())
        >>> monitor.close()
    """
    optimizers = optimizers_in(optimizer)
    called, model = model, _checked_model(model)
    _check(model, optimizers, criterion, budget, probe_timeout, on_error)
    fitted("loss_fn", loss_fn, LossFunction | None)
    _refuse_criterion(loss_fn)
    sinks = fitted("sinks", sinks, Sequence[Tracker])
    fitted("run_dir", run_dir, Location | None)
    seed, resume = fitted("seed", seed, Seed), fitted("resume", resume, bool)
    sync = fitted("sync", sync, bool)
    further = [] if other_process() else [as_sink(sink) for sink in sinks]
    if probe_batch is not None:
        check_batch(probe_batch, model)
        if criterion is not None and not tensors(probe_batch):
            raise TypeError(
                "expected probe_batch as (inputs, target) of tensors for the criterion, got "
                f"{shown(probe_batch)}; numpy arrays become tensors by torch.as_tensor(array)"
            )
    scheduled = resolve(probes, schedule)
    if other_process():
        scheduled, run_dir = [], None
    _say_what_is_complex(model)
    store = None if run_dir is None else _open(run_dir, resume, sync)
    if store is not None:
        store.describe(**_facts(model, optimizers, scheduled, budget, seed))
    return Monitor(
        model,
        optimizers,
        probes=scheduled,
        loss_fn=loss_fn,
        criterion=criterion,
        probe_batch=probe_batch,
        budget=budget,
        probe_timeout=probe_timeout,
        sinks=[*([store] if store else []), *further],
        seed=seed,
        segment=store.segment if store else 0,
        step=store.next_step if store else 0,
        on_error=on_error,
        attached_at=_caller(),
        called=called,
    )


def _checked_model(model: Any) -> nn.Module:
    """The model to watch, out of its wrappers."""
    refuse_engine(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model as an nn.Module, got {type(model).__name__}")
    refuse_sharded(model)
    return unwrapped(model)


def _check(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    criterion: Any,
    budget: Any,
    probe_timeout: Any,
    on_error: Any,
) -> None:
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} is a lazy parameter without a shape; run one forward pass before attach()"
        )
    empty = [n for n, p in model.named_parameters() if p.is_meta]
    if empty:
        raise ValueError(
            f"expected parameters that hold numbers, got {empty[0]} on the meta device; give the "
            'model memory by model.to_empty(device="cpu") and its weights by load_state_dict()'
        )
    if not trainable(model):
        raise ValueError(
            f"expected a model with trainable parameters, got {type(model).__name__} with "
            f"{sum(1 for _ in model.parameters())} parameters, none of which requires gradients"
        )
    if not any(
        group.names for group in parameter_groups(optimizers, dict(model.named_parameters()))
    ):
        raise ValueError(
            "the optimizer holds none of the model's parameters; make it from model.parameters()"
        )
    for other in (m for optimizer in optimizers for m in monitors_of(optimizer)):
        raise ValueError(
            f"this optimizer has a monitor already, attached at {other.attached_at}; close() that "
            "one first, or give all probes to one attach()"
        )
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be an nn.Module, whose calls can be seen, got {criterion!r}; use "
            "e.g. nn.CrossEntropyLoss(), or decorate your loss function with @monitor.loss"
        )
    check_share(budget)
    check_timeout(probe_timeout)
    fitted("on_error", on_error, OnError)


def _say_what_is_complex(model: nn.Module) -> None:
    """Complex models can be trained and probed for equivariance; derivatives are not defined."""
    names = [n for n, p in model.named_parameters() if p.is_complex()]
    if names:
        logger.warning(
            "%s is complex: probes that need derivatives or parameter symmetries will be "
            "not_applicable; hold complex weights as real ones by torch.view_as_real",
            names[0],
        )


def _refuse_criterion(loss_fn: Any) -> None:
    """Losses of torch take outputs and targets, not a model and a batch."""
    if getattr(loss_fn, "__module__", "") in ("torch.nn.functional", "torch.nn.modules.loss"):
        raise TypeError(
            f"loss_fn must be a function (model, batch) -> loss, got {shown(loss_fn)}, which takes "
            "outputs and targets; give criterion=nn.CrossEntropyLoss() or a like module, or a "
            "function that calls the model"
        )


def _open(run_dir: Location, resume: bool, sync: bool) -> RunDirectory:
    try:
        return RunDirectory(run_dir, resume=resume, sync=sync)
    except OSError as error:
        if error.errno is None:  # in our own words
            raise
        raise type(error)(
            error.errno,
            f"cannot write run_dir {str(run_dir)!r} ({error.strerror}); give a writable directory",
        ) from error


def _facts(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    scheduled: Sequence[Scheduled],
    budget: float | None,
    seed: int,
) -> dict[str, Any]:
    """What run.json says about the run."""
    some = next(iter(trainable(model).values()))
    parameters = [p.numel() for p in model.parameters()]
    groups = [
        {
            key: value if value == value else None
            for key, value in (
                ("lr", g.lr),
                ("weight_decay", g.weight_decay),
                ("momentum", g.momentum),
            )
        }
        for g in parameter_groups(optimizers, dict(model.named_parameters()))
    ]
    return {
        "eqtoolbox": version("eqtoolbox"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "model": {
            "class": type(model).__name__,
            "parameters": sum(parameters),
            "trainable": sum(p.numel() for p in trainable(model).values()),
        },
        "optimizer": {
            "class": "+".join(dict.fromkeys(type(o).__name__ for o in optimizers)),
            "groups": groups,
        },
        "processes": processes(),
        "budget": budget,
        "seed": seed,
        "device": str(some.device),
        "dtype": str(some.dtype).removeprefix("torch."),
        "probes": {s.probe.name: describe(s) for s in scheduled},
    }


def _caller() -> str:
    """File and line of the user's own call."""
    ours = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not frame.filename.startswith(ours):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown place"
