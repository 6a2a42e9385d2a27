"""What is made of a watched model while it is caught is what would be made of an unwatched one."""

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.capture.caught import Hook
from eqtoolbox.watch.probe import Probe
from tests.conftest import blobs, mlp
from tests.loops.test_faults import Loss, cross_entropy

STEPS = 4
AT = 2  # the step before which the model is copied, or whatever is done to it


class Parent(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) + 1  # type: ignore[no-any-return]


class Holder(nn.Module):
    """A module that keeps the monitor of its network."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.net = mlp(6, 3)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.monitor = eq.attach(self.net, optimizer, probes=[Loss()], schedule=1, run_dir=run_dir)


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


x, y = blobs()
MADE: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
    "average": torch.optim.swa_utils.AveragedModel,
    "script": torch.jit.script,
    "script of a parent": lambda model: torch.jit.script(Parent(model)),
    "trace": lambda model: torch.jit.trace(model, x),
    "trace of a parent": lambda model: torch.jit.trace(Parent(model), x),
    "export": lambda model: torch.export.export(model, (x,)).module(),
    "fx": torch.fx.symbolic_trace,
    "fx of a parent": lambda model: torch.fx.symbolic_trace(Parent(model)),
    "make_fx": lambda model: make_fx(model)(x),
    "compile": lambda model: torch.compile(copy.deepcopy(model), backend="eager"),
}


def trained(
    watch: bool, make: Callable[[nn.Module], Any]
) -> tuple[Any, Tensor, Tensor, MemorySink]:
    """What was made, its answer, the parameters in the end, and the records."""
    torch.manual_seed(0)
    model, criterion, sink = mlp(6, 8, 3), nn.CrossEntropyLoss(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = None
    if watch:
        options: dict[str, Any] = {"schedule": 1, "budget": None, "sinks": [sink]}
        monitor = eq.attach(model, optimizer, criterion=criterion, probes=[Loss()], **options)
    made: Any = None
    for step in range(STEPS):
        if step == AT:
            made = make(model)
        output = model(x)
        if step >= AT and made is not None:
            answer = made(x)  # between the forward and the loss that are caught
        optimizer.zero_grad()
        criterion(output, y).backward()
        optimizer.step()
    if monitor:
        monitor.close()
    return (
        made,
        answer.detach(),
        torch.cat([p.detach().flatten() for p in model.parameters()]),
        sink,
    )


def values(sink: MemorySink) -> list[tuple[int, str, float]]:
    return [(r.step, r.name, r.value) for r in sink.records if not r.name.startswith("cost/")]


@pytest.mark.filterwarnings("ignore:.*jit.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("kind", MADE)
def test_what_is_made_of_a_watched_model_is_what_is_made_of_any(kind: str) -> None:
    made, answer, parameters, sink = trained(True, MADE[kind])
    _, expected, alone, _ = trained(False, MADE[kind])
    assert torch.equal(answer, expected)
    assert torch.equal(parameters, alone)
    assert values(sink) == values(trained(True, copy.deepcopy)[3])
    assert len([r for r in sink.records if r.name == "replay/loss" and r.status == "ok"]) == STEPS
    if kind in ("deepcopy", "pickle", "save"):
        assert not any(vars(made)[name] for name in vars(made) if "hooks" in name)


def test_another_call_of_the_watched_model_itself_is_seen() -> None:
    """So that the records above are the same for the reason that no copy is caught."""
    sink = trained(True, lambda model: model)[3]
    assert values(sink) != values(trained(True, copy.deepcopy)[3])


def attached(model: nn.Module, criterion: nn.Module | None = None) -> eq.Monitor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes: list[Probe] = [Loss()]
    return eq.attach(model, optimizer, criterion=criterion, probes=probes, schedule=1)


def test_hooks_of_the_user_are_copied_called_and_removed_beside_ours() -> None:
    model = mlp(6, 3)
    first = model.register_forward_hook(print_nothing)
    monitor = attached(model)
    second = model.register_forward_pre_hook(print_nothing)
    twin = copy.deepcopy(model)
    assert list(twin._forward_hooks.values()) == [print_nothing]
    assert list(twin._forward_pre_hooks.values()) == [print_nothing]
    assert [*twin._forward_hooks_with_kwargs, *twin._forward_pre_hooks_with_kwargs] == []
    first.remove()
    second.remove()
    assert [type(hook) for hook in dict(model._forward_hooks).values()] == [Hook]
    monitor.close()
    for table in (model._forward_hooks, model._forward_pre_hooks):
        assert len(table) == 0
        assert vars(table) == {}


def print_nothing(*given: Any) -> None:
    """A hook that pickles."""


def test_two_monitors_of_one_criterion_conceal_their_hooks_each() -> None:
    criterion = nn.CrossEntropyLoss()
    one, two = attached(mlp(6, 3), criterion), attached(mlp(6, 3), criterion)
    assert len(criterion._forward_hooks) == 4, "of each one that hears and one that catches"
    one.close()
    assert len(criterion._forward_hooks) == 2
    assert len(copy.deepcopy(criterion)._forward_hooks) == 0
    two.close()
    assert vars(criterion._forward_hooks) == {}


def test_a_hook_that_another_module_shares_is_inert_there() -> None:
    """A shallow copy has the same tables of hooks."""
    told: list[nn.Module] = []

    class Owner:
        stopwatch = warnings.catch_warnings()

        def note(self, module: nn.Module, *_: Any) -> None:
            told.append(module)

    owner, module = Owner(), nn.Linear(1, 1)
    hook = Hook(owner, "note", module)
    hook(copy.copy(module))
    assert told == []
    hook(module)
    assert told == [module]


def test_a_copied_or_saved_monitor_watches_nothing(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "run")
    for twin in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert repr(twin.monitor) == "Monitor(Sequential, ; step 0, detached)"
        assert twin.monitor.model is twin.net
        assert not twin.monitor.due
        twin.monitor.loss(cross_entropy)(twin.net, (x, y)).backward()
        twin.monitor.optimizer.step()
        twin.monitor.close()
    assert holder.monitor.due
    assert repr(holder.monitor) == "Monitor(Sequential, replay; step 0, attached)"
    holder.monitor.close()
    assert eq.Run(tmp_path / "run").records() == []


class OwnLoss(nn.Module):
    """A model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean()  # type: ignore[no-any-return]


PROGRAMS: dict[str, Callable[[nn.Module], str]] = {
    "trace": lambda model: re.sub(
        r"___torch_mangle_\d+\.", "", str(torch.jit.trace(model, x).inlined_graph)
    ),
    "export": lambda model: str(torch.export.export(model, (x,))),
    "fx of a parent": lambda model: str(torch.fx.symbolic_trace(Parent(model)).graph),
    "make_fx": lambda model: str(make_fx(model)(x).graph),
}


@pytest.mark.filterwarnings("ignore:.*jit.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_model_that_is_recorded_is_not_caught_and_gives_the_same_program(kind: str) -> None:
    """Here of a model that returns its loss, each call of which is a loss otherwise."""
    model = OwnLoss()
    alone = PROGRAMS[kind](model)
    with attached(model) as monitor:
        assert PROGRAMS[kind](model) == alone
        assert monitor._capture.pending.coming == []
        model(x)
        assert len(monitor._capture.pending.coming) == 1
