"""A probe ends when its time is up, between two evaluations, and keeps what it has measured."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.expect.deadline import OutOfTime, check, deadline
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.linalg.operator import MatrixOperator
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Cyclic
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.time_limit import FIRST, LEAST, TIMES, TimeLimit
from tests.conftest import mlp
from tests.loops.test_faults import STEPS, Loss, cross_entropy, train

SLOW = 0.02  # seconds of an evaluation that is made to take long


class Long(Loss):
    """Evaluates the loss many times, with a row after each."""

    headline = "last"
    evaluations = 200

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        for k in range(self.evaluations):
            loss = snapshot.objective.loss(snapshot.before)
            yield Measurement("loss", float(loss.detach()), target=str(k))
        yield Measurement("last", 1.0)


class Asleep(Loss):
    """Cannot be stopped: it evaluates nothing."""

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        time.sleep(10 * SLOW)
        yield Measurement("loss", 1.0)


def slow(model: nn.Module, batch: Any) -> Tensor:
    """The loss, slow wherever a probe evaluates it."""
    if current() is not None:
        time.sleep(SLOW)
    return cross_entropy(model, batch)


def train_slowly(probe: Any, steps: int = STEPS, **options: Any) -> tuple[Any, list[str], float]:
    """Records, warnings and the longest time that the probe took, of training with `slow`."""
    sink = MemorySink()

    class Watch:
        def __init__(self, model: nn.Module, optimizer: Any) -> None:
            probes = probe if isinstance(probe, dict) else [probe]
            given = {"probes": probes, "schedule": 1, "budget": None, **options}
            self.monitor = eq.attach(model, optimizer, sinks=[sink], **given)
            self.close = self.monitor.close

        def loss(self, _: Any) -> Any:
            return self.monitor.loss(slow)

    parameters, seen = train(Watch, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(parameters, train(steps=steps)[0], strict=True))
    took = [r.value for r in sink.records if r.name.startswith("cost/seconds")]
    return sink, seen, max(took)


# -- time ------------------------------------------------------------------------------------------


def test_a_probe_over_its_limit_stops_between_evaluations_and_keeps_its_rows() -> None:
    sink, seen, took = train_slowly(Long(), probe_timeout=5 * SLOW)
    assert took < 5 * SLOW + 0.5  # of 4 s
    rows = [r for r in sink.records if r.name.startswith("replay/loss/") and r.step == 0]
    assert 1 <= len(rows) <= 6
    assert {r.status for r in rows} == {"ok"}
    failed = [r for r in sink.records if r.name == "replay/last"]
    assert [(r.step, r.status) for r in failed] == [(0, "failed"), (1, "failed"), (2, "failed")]
    assert "more than its limit of 0.1 s; rows measured until then are kept" in failed[0].note
    assert len(seen) == 1
    assert "replay failed with OutOfTime: took 0." in seen[0]
    assert [e[3] for e in sink.events][-1] == "replay is disabled after 3 failures"


@pytest.mark.parametrize("limit", [None, 60.0, "auto"])
def test_within_its_limit_it_runs_to_its_end(limit: Any) -> None:
    probe = Long()
    probe.evaluations = 8
    sink, seen, _ = train_slowly(probe, steps=2, probe_timeout=limit)
    assert [r.value for r in sink.records if r.name == "replay/last"] == [1.0, 1.0]
    assert seen == []


@pytest.mark.parametrize("name", ["curvature", "discrete", "noether"])
def test_probes_stop_within_an_evaluation_of_their_limit(name: str) -> None:
    limit = 4 * SLOW
    sink, seen, _ = train_slowly({name: {}}, steps=1)
    unlimited = sum(r.value for r in sink.records if r.name.startswith("cost/seconds"))
    assert seen == []
    sink, seen, took = train_slowly({name: {}}, steps=1, probe_timeout=limit)
    assert unlimited > 2 * limit
    assert took < limit + 2 * SLOW + 0.1
    assert len(seen) == 1
    assert "more than its limit of 0.08 s" in seen[0]


def test_a_probe_that_cannot_be_stopped_is_told_of_and_ends_after_three_times() -> None:
    sink, seen, _ = train_slowly(Asleep(), probe_timeout=SLOW)
    rows = [r for r in sink.records if r.name == "replay/loss"]
    assert [(r.step, r.value) for r in rows] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert all("more than its limit of 0.02 s" in r.note for r in rows)
    assert len(seen) == 1
    assert "replay failed with OutOfTime: took 0." in seen[0]


def test_the_budget_pays_for_a_probe_that_cannot_be_stopped() -> None:
    sink, seen, _ = train_slowly(Asleep(), budget=0.05, allowance=0.0)
    assert [r.step for r in sink.records if r.name == "replay/loss" and r.status == "ok"] == [0]
    assert seen == []


def test_products_stop_at_the_deadline() -> None:
    A = MatrixOperator(torch.eye(2))
    with deadline(60.0):
        A({"x": torch.ones(2)})
    with deadline(0.0), pytest.raises(OutOfTime, match="time is over"):
        A({"x": torch.ones(2)})
    A({"x": torch.ones(2)})


def test_group_elements_stop_at_the_deadline() -> None:
    x, flips = torch.ones(2, 1, 4, 4), Equivariance(Cyclic(4), quarter_turn, trivial)
    with deadline(60.0):
        equivariance_error(lambda x: x.sum((1, 2)), x, flips)
    with deadline(0.0), pytest.raises(OutOfTime, match="time is over"):
        equivariance_error(lambda x: x.sum((1, 2)), x, flips)


def test_a_deadline_holds_in_its_own_scope_and_thread() -> None:
    with deadline(0.0):
        with deadline(None):
            check()
        with pytest.raises(OutOfTime, match="time is over"):
            check()
        asyncio.run(asyncio.to_thread(check))
    check()


def test_a_limit_is_a_multiple_of_the_longest_run_so_far() -> None:
    limit = TimeLimit()
    assert limit.of("a") == FIRST
    limit.learn("a", 0.1)
    assert limit.of("a") == LEAST
    limit.learn("a", 10.0)
    limit.learn("a", 2.0)
    assert limit.of("a") == TIMES * 10.0
    assert limit.of("b") == FIRST
    assert "before at most 10 s" in limit.exceeded("a", 201.0)
    assert TimeLimit(None).of("a") is None
    assert TimeLimit(3).of("a") == 3


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), True, "long", [1]])
def test_what_is_no_time_limit_is_refused(limit: Any) -> None:
    model = mlp(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"probe_timeout is a number of seconds above 0.*got"):
        eq.attach(model, optimizer, probe_timeout=limit)
    with pytest.raises(ValueError, match=r"probe_timeout is a number of seconds above 0.*got"):
        Attachment(probe_timeout=limit)
