"""Schedules are due when they say."""

import math
from itertools import pairwise

import pytest

from eqtoolbox.record.schedule import Schedule, as_schedule, at, every, following, log_spaced


def due(schedule: object, until: int = 30) -> list[int]:
    return [s for s in range(until) if schedule(s)]  # type: ignore[operator]


def test_every_counts_from_its_offset() -> None:
    assert due(every(10)) == [0, 10, 20]
    assert due(every(10, offset=4)) == [4, 14, 24]
    assert due(every(0)) == []


def test_at_is_due_at_the_listed_steps_only() -> None:
    assert due(at([3, 3, 7])) == [3, 7]


def test_log_spaced_starts_at_zero_ends_at_until_and_thins_out() -> None:
    steps = due(log_spaced(20, until=1000), 1001)
    gaps = [b - a for a, b in pairwise(steps)]
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert gaps[-1] > 100 > gaps[0]


def test_an_int_and_a_callable_are_schedules() -> None:
    assert due(as_schedule(10)) == [0, 10, 20]
    assert due(as_schedule(lambda step: step == 5)) == [5]


@pytest.mark.parametrize("value", [None, "10", 2.5, True])
def test_anything_else_is_none(value: object) -> None:
    with pytest.raises(TypeError, match="a schedule is an int n"):
        as_schedule(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(-1), r"use every\(0\) to switch a probe off"),
        (lambda: at([-1]), "needs steps >= 0"),
        (lambda: log_spaced(1), "needs n >= 2"),
    ],
)
def test_a_bad_schedule_is_refused_at_construction(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "schedule",
    [
        every(3, offset=4),
        every(1),
        every(0),
        every(7),
        at([]),
        at([0, 5, 6, 90]),
        log_spaced(9, 80),
    ],
)
def test_the_following_due_step_is_the_first_that_the_schedule_names(schedule: Schedule) -> None:
    for step in range(100):
        due = [s for s in range(step, 300) if schedule(s)]
        assert following(schedule, step) == (due[0] if due else math.inf)


def test_a_function_is_asked_at_every_step() -> None:
    assert following(lambda step: step % 5 == 0, 3) == 3
