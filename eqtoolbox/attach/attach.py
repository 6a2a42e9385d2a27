"""Attach: from what a user writes to a monitor at work."""

import os
import platform
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from eqtoolbox.attach.config import PRESETS, overridden, resolve
from eqtoolbox.attach.entry import describe
from eqtoolbox.attach.place import directory, let_go, opened
from eqtoolbox.attach.spelled import spelled
from eqtoolbox.attach.telling import Telling
from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Location
from eqtoolbox.expect.words import shown
from eqtoolbox.probes.histograms import Histograms
from eqtoolbox.record.schedule import every
from eqtoolbox.replay.tree import check_batch, tensors
from eqtoolbox.replay.unwrap import (
    optimizers_in,
    other_process,
    processes,
    refuse_engine,
    refuse_scripted,
    refuse_sharded,
    unwrapped,
)
from eqtoolbox.sinks.adapter import as_sink
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.watch.journal import logger
from eqtoolbox.watch.monitor import Monitor, monitors_of
from eqtoolbox.watch.options import Options
from eqtoolbox.watch.probe import Scheduled, topics
from eqtoolbox.watch.snapshot import parameter_groups, trainable
from eqtoolbox.world.around import world_of
from eqtoolbox.world.world import World

SWITCH = "EQTOOLBOX"  # environment variable
HISTOGRAMS = 100  # steps between those that were asked for by a word

Optimizers = (
    torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | Mapping[Any, torch.optim.Optimizer]
)


@checked
@dataclass(frozen=True, eq=False)
class Arguments(Options):
    """What `attach` is called with."""

    model: Annotated[nn.Module, OWN]
    optimizer: Annotated[Optimizers, OWN]


@spelled(Arguments, Options)
def attach(given: Arguments) -> Monitor:
    """Watch `model` as `optimizer` trains it; training itself stays bit-identical.

    Probes that evaluate the loss need to know it. In order of precedence: decorate it with
    `monitor.loss`; give `loss_fn` and call `monitor.observe(batch)` each step (or give
    `probe_batch`); give the `criterion` module that the loop calls on the model's output; or have
    a model that returns its own loss.

    With the environment variable EQTOOLBOX=off nothing is watched, written or told to trackers.

    Args:
        model: any module with trainable parameters; DistributedDataParallel and torch.compile are
            looked into. Where several processes train it, each of them attaches: they measure the
            loss of the global batch together, and the first writes.
        optimizer: the one whose `step()` counts; a wrapper's own `.optimizer` is found. Several
            that train the model together are given as a list or a dict: one step is over when
            each has stepped.
        The others are those of `eqtoolbox.watch.options.Options`.

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
    optimizers, model = optimizers_in(given.optimizer), _checked_model(given.model)
    counted = given.exist == "number" and not given.resume  # the run that is there is left alone
    attached_at = _caller()
    let_go(optimizers, None if counted else given.run_dir, attached_at)
    _check(model, optimizers)
    refuse_scripted("criterion", given.criterion)
    _check_probe_batch(given, model)
    off = switched_off()
    scheduled = _scheduled(given)
    world = World() if off else _world(model, scheduled, given)
    idle = not world.first or (not world.several and other_process())
    how: dict[str, Any] = {"select": given.select, "histograms": given.histograms}
    further = [] if idle or off else [as_sink(sink, **how) for sink in given.sinks]
    if off or (idle and not world.several):
        scheduled = []
    _say_what_is_complex(model)
    with world.together("attach"):
        store = None if off or idle or given.run_dir is None else _open(given.run_dir, given)
        start = [float(store.segment), float(store.next_step)] if store else [0.0, 0.0]
        segment, step = map(int, world.decided("start", start))
    tells = [] if store is None else [Telling(store.path, topics(scheduled))]
    if store is not None:
        store.describe(**_facts(model, optimizers, scheduled, given))
    monitor = Monitor(
        model,
        optimizers,
        given,
        probes=scheduled,
        sinks=[*([store] if store else []), *tells, *further],
        segment=segment,
        step=step,
        attached_at=attached_at,
        called=given.model,
        world=world,
    )
    opened(monitor, store.path if store else None)
    for tell in tells:
        tell.pass_on = monitor.pass_on
    if off:
        monitor.detach()
    return monitor


def _world(model: nn.Module, scheduled: Sequence[Scheduled], given: Arguments) -> World:
    """The processes that train the model, all of which attach the same."""
    about = {s.probe.name: describe(s) for s in scheduled}
    options = ("budget", "allowance", "memory", "seed", "steps", "probe_timeout", "resume")
    about |= {name: getattr(given, name) for name in options}
    about["parameters"] = {n: list(p.shape) for n, p in trainable(model).items()}
    return world_of(model, given.model, about, given.rank_timeout)


def _scheduled(given: Options) -> list[Scheduled]:
    """The probes of a run, with histograms where they are asked for."""
    scheduled = resolve(given.probes, given.schedule)
    if given.histograms and not any(isinstance(s.probe, Histograms) for s in scheduled):
        drawn = Scheduled(probe=Histograms(), schedule=every(HISTOGRAMS))
        names = [s.probe.name for s in scheduled] + [drawn.probe.name]
        scheduled.append(overridden(drawn, given.schedule, names))
    return scheduled


def switched_off() -> bool:
    """Whether the environment variable EQTOOLBOX says that nothing is to be watched.

    Raises:
        ValueError: it says neither on nor off.
    """
    said = os.environ.get(SWITCH, "").lower()
    if said not in ("", "on", "off"):
        raise ValueError(f"{SWITCH} must be on or off, got {said!r}; unset it to watch trainings")
    if said == "off":
        logger.info("%s=off: nothing is watched", SWITCH)
    return said == "off"


def _checked_model(model: Any) -> nn.Module:
    """The model to watch, out of its wrappers."""
    refuse_engine(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model as an nn.Module, got {type(model).__name__}")
    refuse_sharded(model)
    refuse_scripted("model", unwrapped(model))
    return unwrapped(model)


def _check(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
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


def _check_probe_batch(given: Arguments, model: nn.Module) -> None:
    if given.probe_batch is None:
        return
    check_batch(given.probe_batch, model)
    if given.criterion is not None and not tensors(given.probe_batch):
        raise TypeError(
            "expected probe_batch as (inputs, target) of tensors for the criterion, got "
            f"{shown(given.probe_batch)}; numpy arrays become tensors by torch.as_tensor(array)"
        )


def _say_what_is_complex(model: nn.Module) -> None:
    """Complex models can be trained and probed for equivariance; derivatives are not defined."""
    names = [n for n, p in model.named_parameters() if p.is_complex()]
    if names:
        logger.warning(
            "%s is complex: probes that need derivatives or parameter symmetries will be "
            "not_applicable; hold complex weights as real ones by torch.view_as_real",
            names[0],
        )


def _open(run_dir: Location, given: Options) -> RunDirectory:
    try:
        return directory(run_dir, given.exist, resume=given.resume, sync=given.sync)
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
    given: Options,
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
                ("maximize", g.maximize),
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
        "budget": given.budget,
        "allowance": given.allowance,
        "memory": given.memory,
        "seed": given.seed,
        "device": str(some.device),
        "dtype": str(some.dtype).removeprefix("torch."),
        "preset": given.probes if given.probes in PRESETS else None,  # nobody claims what it asks
        "probes": {s.probe.name: describe(s) for s in scheduled},
    }


def _caller() -> str:
    """File and line of the user's own call."""
    ours = f"{Path(__file__).parents[1]}{os.sep}"
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not frame.filename.startswith(ours):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown place"
