"""The store of a run's findings, and what tells one loss from another."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.replay.identity import digest, identity
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.watch.capture.losses import Criterion, SpreadCall
from eqtoolbox.watch.shared import KEPT, Shared
from tests.conftest import mlp


class Counted:
    """A finding that is checkpointed."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}


def test_a_finding_is_made_once_for_what_it_is_about() -> None:
    shared, made = Shared(), list[int]()
    for about in (1, 2, 1, 2):
        shared.get("kind", about, lambda about=about: made.append(about))
    shared.get("other", 1, lambda: made.append(3))
    assert made == [1, 2, 3]


def test_what_cannot_be_found_out_is_tried_again() -> None:
    shared = Shared()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="division"):
            shared.get("kind", 1, lambda: 1 // 0)
    assert shared.get("kind", 1, lambda: 5) == 5


def test_the_latest_findings_are_kept() -> None:
    shared, made = Shared(), list[int]()
    ask = lambda about: shared.get("kind", about, lambda: made.append(about))
    for about in (0, *range(KEPT), 0, KEPT, 0, 1):  # 1 was the last used longest ago
        ask(about)
    assert made == [*range(KEPT), KEPT, 1]


def test_seconds_of_a_finding_within_another_count_once() -> None:
    shared = Shared()

    def outer() -> None:
        shared.get("inner", 1, lambda: time.sleep(0.05))

    started = time.perf_counter()
    shared.get("outer", 1, outer)
    assert 0.05 <= shared.seconds <= time.perf_counter() - started


def test_findings_with_a_state_survive_and_others_are_made_again() -> None:
    first = Shared()
    first.get("kept", 1, lambda: Counted(7))
    first.get("live", 1, lambda: object())
    state = first.state_dict()
    assert list(state.values()) == [{"value": 7}]
    second, restore = Shared(), lambda state: Counted(state["value"])
    second.load_state_dict(state)
    assert second.state_dict() == state  # before it was asked for, too
    assert second.get("kept", 1, lambda: Counted(0), restore).value == 7
    assert second.get("kept", 2, lambda: Counted(0), restore).value == 0
    assert second.get("live", 1, lambda: 3) == 3


# -- identity -----------------------------------------------------------------------------------


def objective(model: nn.Module, loss_fn: Any, flags: tuple[bool, ...] = ()) -> Objective:
    return Objective(
        model=model, loss_fn=loss_fn, batch=(), random=RandomState(), buffers={}, flags=flags
    )


def of(model: nn.Module, loss_fn: Any = None, flags: tuple[bool, ...] = ()) -> Any:
    return identity(objective(model, loss_fn, flags), dict(model.named_parameters()))


ACTIVATION: Callable[[Tensor], Tensor] = torch.relu


def through_globals(model: nn.Module, batch: Any) -> Tensor:
    return ACTIVATION(model(batch)).sum()


def through_closure(part: Any) -> Callable[..., Any]:
    return lambda model, batch: part(model(batch))


def through_default(part: Any) -> Callable[..., Any]:
    def loss(model: nn.Module, batch: Any, part: Any = part) -> Any:
        return part(model(batch))

    return loss


class Task:
    """A loss that is a method, and an object that is called."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return self.part(model(batch))

    __call__ = loss


WAYS: dict[str, Callable[[Any], Any]] = {
    "closure": through_closure,
    "default": through_default,
    "method": lambda part: Task(part).loss,
    "object": Task,
    "decorated": lambda part: SpreadCall(through_closure(part)),
    "nested": lambda part: through_closure(through_closure(part)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_is_what_its_function_reaches(way: str) -> None:
    model, make = mlp(4, 3), WAYS[way]
    assert of(model, make(torch.relu)) == of(model, make(torch.relu))
    assert of(model, make(torch.relu)) != of(model, make(torch.tanh))
    assert of(model, make(nn.ReLU())) == of(model, make(nn.ReLU()))
    assert of(model, make(nn.LeakyReLU(0.1))) != of(model, make(nn.LeakyReLU(0.2)))


def test_a_loss_is_what_its_globals_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(4, 3)
    before = of(model, through_globals)
    assert before == of(model, through_globals)
    monkeypatch.setitem(globals(), "ACTIVATION", F.gelu)
    assert of(model, through_globals) != before


def test_criteria_differ_by_class_and_constants() -> None:
    model = mlp(4, 3)
    plain = of(model, Criterion(nn.CrossEntropyLoss()))
    assert plain == of(model, Criterion(nn.CrossEntropyLoss()))
    assert plain != of(model, Criterion(nn.CrossEntropyLoss(label_smoothing=0.1)))
    assert plain != of(model, Criterion(nn.MultiMarginLoss()))


def test_training_flags_are_those_of_the_loss_where_it_noted_them() -> None:
    model = mlp(4, 3)
    noted = tuple(m.training for m in model.modules())
    training = of(model, flags=noted), of(model)
    model.eval()
    assert of(model, flags=noted) == training[0]
    assert of(model) != training[1]


def test_a_label_is_no_part_of_a_module_and_another_word_is() -> None:
    class Named(nn.Linear):
        def __init__(self, name: str, kind: str) -> None:
            super().__init__(4, 3)
            self.name, self.kind = name, kind

    assert of(Named("dense", "relu")) == of(Named("dense_1", "relu"))
    assert of(Named("dense", "relu")) != of(Named("dense", "tanh"))


class Counting(nn.Linear):
    """Counts its calls, and has an exponent."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.calls, self.power = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) ** self.power


def test_a_counter_of_a_module_is_no_part_of_it_and_an_exponent_is() -> None:
    model = Counting()
    before = of(model)
    model(torch.ones(2, 4))
    assert model.calls == 1
    assert of(model) == before
    model.power = 2
    assert of(model) != before


def test_what_cannot_be_compared_is_no_reason_to_fail() -> None:
    model = mlp(4, 3)
    model[0].odd = ([1],)  # type: ignore[assignment]
    assert of(model) == of(model)
    recursive: list[Any] = []
    recursive.append(recursive)
    assert of(model, through_closure(recursive)) is not None


SCRIPT = """
from tests.test_shared import Task, mlp, of, through_default
from eqtoolbox.replay.identity import digest
import torch
print(digest(of(mlp(4, 5, 3), through_default(Task(torch.tanh)))))
"""


def test_digests_are_the_same_in_another_process() -> None:
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert there == digest(of(mlp(4, 5, 3), through_default(Task(torch.tanh))))
    assert there != digest(of(mlp(4, 5, 3), through_default(Task(torch.relu))))
