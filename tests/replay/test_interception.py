"""A function that a thread answers for itself is the function itself to everybody else."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.thread import interception
from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current


class Owner:
    def double(self, x: int) -> int:
        return 2 * x

    @classmethod
    def named(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


class Heir(Owner):
    """Inherits what is intercepted."""


DOUBLE, NAMED = Owner.double, vars(Owner)["named"]


def inside(owner: str, name: str) -> Intercepted:
    return Intercepted((__name__, owner), name)


def test_the_thread_that_asks_is_answered_and_another_is_not() -> None:
    seen: list[int] = []
    with inside("Owner", "double").answered_by(lambda original, self, x: -original(self, x)):
        other = threading.Thread(target=lambda: seen.append(Owner().double(3)))
        other.start()
        other.join()
        assert Owner().double(3) == -6
    assert seen == [6]
    assert Owner.double is DOUBLE


def test_the_inner_scope_answers_with_the_outer_as_its_original() -> None:
    function = inside("Owner", "double")
    with function.answered_by(lambda original, self, x: original(self, x) + 1):
        with function.answered_by(lambda original, self, x: 10 * original(self, x)):
            assert Owner().double(3) == 70
        assert Owner().double(3) == 7
    assert Owner.double is DOUBLE


def test_what_is_inherited_is_inherited_again() -> None:
    with inside("Heir", "double").answered_by(lambda original, self, x: 0):
        assert (Heir().double(3), Owner().double(3)) == (0, 6)
    assert "double" not in vars(Heir)


def test_a_class_method_keeps_its_class() -> None:
    with inside("Owner", "named").answered_by(lambda original, x: original(x + 1)):
        assert Owner.named(1) == ("Owner", 2)
    assert vars(Owner)["named"] is NAMED


def test_whoever_exchanges_it_meanwhile_is_not_undone() -> None:
    function = inside("Owner", "double")
    try:
        with function.answered_by(lambda original, self, x: 0):
            ours = Owner.double
            Owner.double = lambda self, x: ours(self, x) + 100  # type: ignore[method-assign]
        assert Owner().double(3) == 106
    finally:
        Owner.double = DOUBLE  # type: ignore[method-assign]


def test_a_module_that_is_not_loaded_is_left_alone() -> None:
    with Intercepted(("no.such.module",), "f").answered_by(lambda original: None):
        pass


def test_it_is_put_back_when_the_last_of_many_threads_is_done() -> None:
    function = inside("Owner", "double")
    barrier = threading.Barrier(8)
    found: list[int] = []

    def ask(k: int) -> None:
        for _ in range(200):
            with function.answered_by(lambda original, self, x: original(self, x) + k):
                if Owner().double(1) != 2 + k:
                    found.append(k)
            if Owner().double(1) != 2:
                found.append(-k)
        barrier.wait()

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert Owner.double is DOUBLE
    assert function._asking == 0


def test_scopes_of_a_replay_leave_every_class_of_torch_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = dict(vars(nn.Module)), dict(vars(nn.Sequential)), vars(torch.nn.functional).copy()
    attributes = [sorted(vars(m)) for m in model.modules()]
    with isolated(model):
        assert current() is not None
        model(torch.ones(1, 2))
        assert dict(vars(nn.Module)) == before[0], "known modules need no exchange of their class"
    assert current() is None
    assert (dict(vars(nn.Module)), dict(vars(nn.Sequential)), vars(torch.nn.functional)) == before
    assert [sorted(vars(m)) for m in model.modules()] == attributes


def test_a_naive_exchange_is_seen_by_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first test would find if every thread were answered."""
    here: Any = SimpleNamespace(answers=[lambda original, self, x: 0])
    monkeypatch.setattr(interception.threading, "local", lambda: here)
    seen: list[int] = []
    with inside("Owner", "double").answered_by(lambda original, self, x: 0):
        other = threading.Thread(target=lambda: seen.append(Owner().double(3)))
        other.start()
        other.join()
    assert seen == [0]
    assert Owner.double is DOUBLE
