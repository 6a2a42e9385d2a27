"""Forward hooks of the user's act in replays, leave nothing there, and are refused by name."""

import functools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import eqtoolbox as eq
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.belongings import Batch, Net, Object, cross_entropy
from tests.neutrality.test_python_state import Writer, batches, trained

HOOKED: dict[str, Callable[[], Any]] = {}
CURVATURE = {"curvature": {"k": 1, "max_matvecs": 6}}


@pytest.fixture(autouse=True)
def _no_hook_of_all_modules_stays() -> Iterator[None]:
    yield
    torch_module._global_forward_hooks.clear()


def _case(make: Callable[[], Any]) -> Any:
    HOOKED[make.__name__.strip("_")] = make
    return make


@_case
def features_that_the_loss_reads() -> Any:
    model, features = Net(), {}
    model.first.register_forward_hook(lambda m, given, made: features.update(a=made))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) + features["a"].square().mean()

    return model, loss, lambda: [*features]


@_case
def features_of_a_teacher() -> Any:
    teacher, features = Net(), []
    teacher.first.register_forward_hook(lambda m, given, made: features.append(made.detach()))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        features.clear()
        teacher(batch[0])
        return cross_entropy(model, batch) + F.mse_loss(model.first(batch[0]), features[0])

    return Net(), loss, lambda: len(features)


@_case
def registered_inside_of_the_loss() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        features: dict[str, Tensor] = {}
        handle = model.first.register_forward_hook(lambda m, given, made: features.update(a=made))
        value = cross_entropy(model, batch)
        handle.remove()
        return value + features["a"].square().mean()

    return Net(), loss, lambda: None


@_case
def output_changed() -> Any:
    model = Net()
    model.first.register_forward_hook(lambda m, given, made: made * 2)
    return model, cross_entropy, lambda: None


@_case
def input_changed_with_keywords() -> Any:
    model = Net()

    def halved(m: nn.Module, given: Any, keywords: Any) -> Any:
        return tuple(x / 2 for x in given), keywords

    model.register_forward_pre_hook(halved, with_kwargs=True)
    return model, cross_entropy, lambda: None


@_case
def output_changed_by_a_count() -> Any:
    model, calls = Net(), [0]

    def scaled(m: nn.Module, given: Any, keywords: Any, made: Tensor) -> Tensor:
        calls[0] += 1
        return made * (1 + 0.1 * calls[0])

    model.first.register_forward_hook(scaled, with_kwargs=True)
    return model, cross_entropy, lambda: calls[0]


@_case
def input_of_the_model_changed_by_a_count() -> Any:
    """The monitor's own hook sees it before, whoever came first."""
    model, calls = Net(), Object(count=0)

    def scaled(more: int, m: nn.Module, given: Any) -> Tensor:
        calls.count += more
        return given[0] * (1 + 0.1 * calls.count)

    model.register_forward_pre_hook(functools.partial(scaled, 1))
    return model, cross_entropy, lambda: calls.count


@_case
def method_of_an_object_that_counts() -> Any:
    class Log:
        def __init__(self) -> None:
            self.means: list[float] = []

        def note(self, m: nn.Module, given: Any, made: Tensor) -> None:
            self.means.append(float(made.detach().mean()))

    model, log = Net(), Log()
    model.second.register_forward_hook(log.note)
    return model, cross_entropy, lambda: log.means


@_case
def draws_random_numbers() -> Any:
    model = Net()
    model.first.register_forward_hook(lambda m, given, made: made + 0.1 * torch.randn(made.shape))
    return model, cross_entropy, lambda: torch.get_rng_state().tolist()


@_case
def of_all_modules() -> Any:
    seen: list[Any] = []

    def scaled(m: nn.Module, given: Any, made: Tensor) -> Tensor | None:
        if not isinstance(m, nn.Linear):
            return None
        seen.append(made.shape)
        return made * (1 + 0.1 * len(seen))

    torch_module.register_module_forward_hook(scaled)
    return Net(), cross_entropy, lambda: seen


@pytest.fixture(autouse=True)
def _no_hook_of_all_modules_stays() -> Iterator[None]:
    yield
    torch_module._global_forward_hooks.clear()


@pytest.mark.parametrize("surface", ["decorator", "criterion"])
@pytest.mark.parametrize("kind", HOOKED.values(), ids=HOOKED.keys())
def test_what_hooks_change_and_keep_is_part_of_the_replayed_loss(kind: Any, surface: str) -> None:
    sink = MemorySink()
    watched = trained(kind, surface, CURVATURE, sink)
    torch_module._global_forward_hooks.clear()
    assert watched == trained(kind)
    values = {r.name: r for r in sink.records if r.step == 0}
    if surface == "decorator" or kind()[1] is cross_entropy:
        assert values["monitor/closure_grad_cos"].value == pytest.approx(1.0, abs=1e-6)
        assert values["monitor/closure_grad_ratio"].value == pytest.approx(1.0, abs=1e-5)


def test_hooks_that_come_after_the_monitor_and_change_the_output_are_seen() -> None:
    sink, criterion, model = MemorySink(), nn.CrossEntropyLoss(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, criterion=criterion, probes=CURVATURE, schedule=1, budget=None,
        sinks=[sink], on_error="raise",
    ):  # fmt: skip
        model.register_forward_hook(lambda m, given, made: made * 3)
        model.register_forward_pre_hook(lambda m, given: given[0] + 1)
        criterion.register_forward_hook(lambda m, given, made: made * 2)
        for x, y in batches(2):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    values = {r.name: r.value for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"] == pytest.approx(1.0, abs=1e-6)
    assert values["monitor/closure_grad_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_hook_that_cannot_be_put_back_is_refused_by_name() -> None:
    def kind() -> Any:
        model, steps = Net(), iter(k for k in range(10**6))
        model.first.register_forward_hook(lambda m, given, made: made * (1 + 0.01 * next(steps)))
        return model, cross_entropy, lambda: next(steps)

    with pytest.warns(RuntimeWarning, match=r"the loss uses Net\.first\._forward_hooks\.steps"):
        watched = trained(kind, "decorator")
    assert watched == trained(kind)


@pytest.mark.parametrize("backward", [False, True])
def test_hooks_that_tell_a_tracker_or_look_at_the_backward_do_not_fire(backward: bool) -> None:
    """Of gradients probes ask many times; what the training is told of them is told once."""
    seen: list[Any] = []

    def kind() -> Any:
        model = Net()
        seen.clear()
        if backward:
            model.second.register_full_backward_hook(lambda *_: seen.append("backward"))
            model.second.register_full_backward_pre_hook(lambda *_: seen.append("before it"))
            model.first.weight.register_hook(lambda g: seen.append("weight"))
            model.first.bias.register_post_accumulate_grad_hook(lambda p: seen.append("bias"))
        else:
            model.first.register_forward_hook(Writer().add_scalar)
        Writer.lines = 0
        return model, cross_entropy, lambda: (len(seen), Writer.lines)

    assert trained(kind, "decorator") == trained(kind)
    assert len(seen) == (16 if backward else 0)


def test_hooks_on_outputs_act_and_leave_nothing() -> None:
    """Those that the loss itself registers, in each evaluation anew."""

    def kind() -> Any:
        norms: list[float] = []

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            hidden = model.first(batch[0])
            if hidden.requires_grad:
                hidden.register_hook(lambda g: norms.append(float(g.norm())))
                hidden.register_hook(lambda g: g * 0.5)
            return F.cross_entropy(model.second(hidden), batch[1])

        return Net(), loss, lambda: norms

    sink = MemorySink()
    assert trained(kind, "decorator", CURVATURE, sink) == trained(kind)
    values = {r.name: r.value for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"] == pytest.approx(1.0, abs=1e-6)


def test_hooks_of_all_modules_are_left_to_other_threads_that_live() -> None:
    """What they note may be of another thread, which goes on while a replay is put back."""
    seen, done = SimpleNamespace(calls=0), threading.Event()

    def kind() -> Any:
        seen.calls = 0
        return Net(), cross_entropy, lambda: seen.calls

    def count(*_: Any) -> None:
        seen.calls += 1

    torch_module.register_module_forward_hook(count)
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert trained(kind, "decorator") == trained(kind)
    finally:
        done.set()
        other.join()
    assert seen.calls == 12, "four steps of three modules"


def test_a_loss_that_needs_the_inside_of_its_model_has_no_loss_of_its_output() -> None:
    sink, probes = MemorySink(), {"curvature": CURVATURE["curvature"] | {"split": True}}
    trained(features_that_the_loss_reads, "decorator", probes, sink)
    rows = [r for r in sink.records if r.name == "curvature/gauss_newton_share"]
    assert {r.status for r in rows} == {"not_applicable"}
    assert "reads what the model computes inside" in rows[-1].note
