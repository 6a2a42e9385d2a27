"""The one law in random loops: models, losses, optimizers, Python state, loaders and threads."""

import json
import re
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from tests.neutrality.random_loops import __main__ as command
from tests.neutrality.random_loops.case import Case
from tests.neutrality.random_loops.hooks import HOOKS
from tests.neutrality.random_loops.leaky import FAULTS, faulty, unprotected
from tests.neutrality.random_loops.loop import Attach
from tests.neutrality.random_loops.losses import LOSSES
from tests.neutrality.random_loops.optimizers import OPTIMIZERS, SCHEDULERS
from tests.neutrality.random_loops.piece import PIECES
from tests.neutrality.random_loops.verdict import Verdict, changes, judge, trails

SEEDS, CHUNK = range(48), 4
MEMORIES = [n for n, p in PIECES.items() if p.remembers and not p.idempotent]
OPAQUE = ("itertools",)  # their state is seen by what comes of it only
STATEFUL = [n for n, known in LOSSES.items() if known.remembers]


@cache
def verdict(seed: int) -> Verdict:
    return judge(Case.of(seed))


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, CHUNK))
def test_training_is_bit_identical_in_random_loops(first: int) -> None:
    seeds = range(first, first + CHUNK)
    assert {s: verdict(s).unsteady for s in seeds if verdict(s).unsteady} == {}
    changed = {s: verdict(s).differences for s in seeds if verdict(s).differences}
    assert changed == {}, "\n".join(f"{s}: {Case.of(s).describe()}" for s in changed)


def test_nearly_every_random_loop_is_measured() -> None:
    unmeasured = [s for s in SEEDS if not verdict(s).measured]
    assert len(unmeasured) <= len(SEEDS) // 20


def test_equal_seeds_give_equal_cases_and_others_others() -> None:
    cases = [Case.of(seed) for seed in range(1000)]
    assert cases == [Case.of(seed) for seed in range(1000)]
    assert len({case.describe() for case in cases}) == 1000


def test_a_thousand_cases_meet_every_part() -> None:
    cases = [Case.of(seed) for seed in range(1000)]
    assert {name for c in cases for name in c.body} == PIECES.keys()
    assert {c.loss for c in cases} == LOSSES.keys()
    assert {h for c in cases for h in c.hooks} == HOOKS.keys()
    assert {c.optimizer for c in cases} == {*OPTIMIZERS}
    assert {c.scheduler for c in cases} == {"", *SCHEDULERS}
    assert {c.loader for c in cases} == {"list", "loader", "fork", "spawn"}
    assert sum(c.remembers for c in cases) > 400
    assert sum(bool(c.threads) for c in cases) > 50


@pytest.mark.parametrize("name", MEMORIES)
def test_an_unprotected_evaluation_is_caught_by_what_the_model_remembers(name: str) -> None:
    changed = _changed(Case(seed=1, body=("linear", name)), unprotected)
    later = name in OPAQUE
    assert changed[0].startswith(("training stopped", "step 1" if later else "step 0"))


@pytest.mark.parametrize("name", STATEFUL)
def test_an_unprotected_evaluation_is_caught_by_what_the_loss_remembers(name: str) -> None:
    changed = _changed(Case(seed=1, loss=name), unprotected)
    assert any("loss function" in c or c.startswith("training stopped") for c in changed)


def test_an_unprotected_evaluation_without_state_is_harmless() -> None:
    assert not _changed(Case(seed=1, body=("batch norm", "dropout", "linear")), unprotected)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_monitor_is_caught(fault: str) -> None:
    body = ("linear", "list", "tensor in place")
    case = Case(seed=1, body=body, hooks=("after the forward",))
    assert not _changed(case, None)
    try:
        assert _changed(case, faulty(fault))
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("name", [n for n, p in PIECES.items() if p.refused])
def test_a_model_that_cannot_be_put_back_is_refused_by_name(name: str) -> None:
    said = judge(Case(body=("linear", name), probes=("curvature",))).said
    assert re.search(PIECES[name].refused, said)


@pytest.mark.parametrize("name", [n for n, known in LOSSES.items() if known.refused])
def test_a_loss_that_cannot_be_put_back_is_refused_by_name(name: str) -> None:
    said = judge(Case(loss=name, probes=("curvature",))).said
    assert re.search(LOSSES[name].refused, said)


def test_a_loop_that_kills_its_process_is_reported_and_the_next_seeds_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        first = int(command[-2])  # judges its first seed, dies at the second one
        row = json.dumps({"seed": first, "verdict": "same"})
        return SimpleNamespace(stdout=row + "\n", stderr="out of memory", returncode=-9)

    monkeypatch.setattr(command.subprocess, "run", run)
    rows = [(row["seed"], row["verdict"]) for row in command.apart(range(3))]
    assert rows == [(0, "same"), (1, "DIED"), (2, "same")]


def _changed(case: Case, attach: Attach | None) -> tuple[str, ...]:
    alone, _ = trails(case, None)
    return changes(alone, case, attach)[0]
