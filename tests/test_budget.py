"""The budget: all that the monitor does counts, and a run of any length ends with curves."""

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.budget import LOSS, Budget
from eqtoolbox.watch.plan import BRIEF, LIGHT, VITAL
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.watch.vitals.vitals import Vitals
from tests.conftest import blobs, mlp


class Quick(Probe):
    name, headline, mode = "quick", "number", "train"

    def reference(self, snapshot: Any, rng: Any) -> float:
        time.sleep(0.05)
        return 0.0

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("number", 1.0)


def run(
    steps: int,
    sinks: list[Any],
    budget: float | None = None,
    pause: float = 0.0,
    allowance: float = 15.0,
) -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model,
        optimizer,
        probes=[Quick()],
        schedule=1,
        budget=budget,
        allowance=allowance,
        sinks=sinks,
    ) as monitor:
        loss_fn = monitor.loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        for _ in range(steps):
            loss_fn(model, blobs()).backward()
            time.sleep(pause)
            optimizer.step()
            optimizer.zero_grad()


def last(sink: MemorySink, name: str) -> float:
    return [r.value for r in sink.records if r.name == name][-1]


def test_the_first_run_is_setup_and_no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quick, "reference", lambda *_: time.sleep(1.0))
    sink = MemorySink()
    run(20, [sink], pause=0.01)
    assert last(sink, "cost/setup") >= 1.0
    assert last(sink, "cost/overhead") < 5, (
        "the second of the reference, beside 200 ms, is not in it"
    )
    assert sum(r.name == "cost/setup" for r in sink.records) == 1, "told when it changes"


class SlowSink(Sink):
    def write(self, record: Any) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        pass


def test_writing_counts_as_the_monitors_time() -> None:
    quick, slow = MemorySink(), MemorySink()
    run(20, [quick], pause=0.002)
    run(20, [slow, SlowSink()], pause=0.002)
    assert last(slow, "cost/overhead") > last(quick, "cost/overhead") + 1.0


def test_catching_counts_as_the_monitors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import eqtoolbox.watch.capture.loss_capture as module

    fresh: Callable[[Any], Any] = module.fresh
    sink = MemorySink()
    monkeypatch.setattr(module, "fresh", lambda batch: (time.sleep(0.004), fresh(batch))[1])
    run(20, [sink], pause=0.002)
    assert last(sink, "cost/overhead") > 1.0, "4 ms are caught for each 2 ms of training"


@pytest.mark.parametrize("budget", [None, 0.05])
def test_vital_signs_are_taken_where_a_loss_is_evaluated_anyway(
    monkeypatch: pytest.MonkeyPatch, budget: float | None
) -> None:
    taken, sink = [], MemorySink()
    monkeypatch.setattr(Vitals, "take", lambda self, seen, scale: taken.append(seen.step))
    run(60, [sink], budget=budget)
    evaluated = [r.step for r in sink.records if r.name == "quick/number" and r.status == "ok"]
    assert taken[0] == 0 and {*taken[1:]} <= {*evaluated}
    assert budget or taken == [*range(60)], "at all of these where there is no budget"


@pytest.mark.parametrize(("cost", "least", "most"), [(0.01, 38, 40), (0.6, 10, 20)])
def test_vital_signs_are_paid_like_a_probe_but_wait_half_a_gap_at_most(
    cost: float, least: int, most: int
) -> None:
    """Beside a probe for which all that is left is spent."""
    budget, taken = Budget(0.05, ["dear"], steps=None), list[int]()
    for step in range(0, 400, 10):
        now = budget.choose(["dear", VITAL], step)
        budget.spend({name: {"dear": 0.5, VITAL: cost}[name] for name in now}, {}, 0.0)
        budget.took(["dear", VITAL], dict.fromkeys(now, True), step)
        taken += [step] * (VITAL in now)
        budget.earn(0.5)
    assert taken[0] == 0 and least <= len(taken) <= most
    assert max(b - a for a, b in pairwise([*taken, 400])) <= 60


def test_vital_signs_wait_where_a_search_holds_the_step_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sink = Conservation.reference, MemorySink()

    def slow(self: Conservation, snapshot: Any, rng: Any) -> Any:
        time.sleep(0.9)
        return found(self, snapshot, rng)

    monkeypatch.setattr(Conservation, "reference", slow)
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Conservation(), Quick()]
    with eq.attach(model, optimizer, probes=probes, schedule=1, sinks=[sink]) as monitor:
        loss_fn = monitor.loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        for _ in range(5):
            loss_fn(model, blobs()).backward()
            optimizer.step()
            optimizer.zero_grad()
    first = {name: min(r.step for r in sink.records if r.name == name) for name in
             ("conservation/drift/rescale", "quick/number", "vital/own_batch")}  # fmt: skip
    assert first == {"conservation/drift/rescale": 0, "quick/number": 1, "vital/own_batch": 1}


def test_a_dear_catch_is_left_out_with_the_probes_it_would_be_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import eqtoolbox.watch.capture.loss_capture as module

    fresh: Callable[[Any], Any] = module.fresh
    sink, caught = MemorySink(), []
    monkeypatch.setattr(
        module, "fresh", lambda batch: (caught.append(1), time.sleep(0.01), fresh(batch))[2]
    )
    run(60, [sink], budget=0.05, allowance=0.0, pause=0.002)
    assert len(caught) < 10, "120 ms of training pay for less than one catch"
    measured = sum(r.name == "quick/number" and r.status == "ok" for r in sink.records)
    assert measured + last(sink, "cost/skipped/quick") == 60


def test_what_hooks_take_comes_off_the_income() -> None:
    budget = Budget(0.1, ["a"], allowance=0.0)
    budget.spend({"a": 1.0}, {"a": 0.9}, shared=0.0)
    assert (budget.setup, budget.probing) == (1.0, 0.0)
    budget.took(["a"], {"a": True}, 0)
    assert budget.choose(["a"], 1) == []
    budget.earn(3.0)
    assert budget.left == pytest.approx(0.3)
    budget.keep(0.25)
    assert budget.choose(["a"], 60) == [], "it costs 0.1 s again"
    assert budget.overhead == pytest.approx(0.25 / 3)
    budget.earn(3.0)
    assert budget.choose(["a"], 120) == ["a"]


def test_what_a_step_makes_necessary_is_shared_by_what_was_measured() -> None:
    budget = Budget(0.1, ["a", "b"])
    for _ in range(2):
        budget.spend({"a": 1.0, LOSS: 0.0}, {}, shared=0.5)
    assert budget.probing == pytest.approx(0.25 + 1.5), "the loss has no set-up"
    assert budget.spent == pytest.approx(3.0)


def test_a_first_light_run_behind_a_whole_one_is_no_set_up() -> None:
    budget = Budget(0.1, ["a"], lightens=["a"])
    budget.spend({"a": 2.0}, {"a": 0.5}, shared=0.0)
    budget.spend({"a" + LIGHT: 0.5}, {}, shared=0.0)
    assert (budget.setup, budget.probing) == (2.0, 0.5)
    first = Budget(0.1, ["a"], lightens=["a"], light_first=["a"])
    first.spend({"a" + LIGHT: 2.0}, {"a" + LIGHT: 0.5}, shared=0.0)
    first.spend({"a" + LIGHT: 0.5}, {}, shared=0.0)
    assert (first.setup, first.probing) == (2.0, 0.5)


# -- the pool -----------------------------------------------------------------------------------

COSTS = {"drift": (0.005, 10), "errors": (0.02, 25), "laws": (0.25, 25), "sharpness": (0.3, 25)}
STEP = 0.027  # seconds of training


def simulated(
    steps: int,
    costs: dict[str, tuple[float, int]],
    setup: float = 2.0,
    seen: list[Any] | None = None,
    allowance: float = 15.0,
    known: int | None = None,
) -> tuple[dict[str, list[int]], Budget]:
    """Steps at which each probe ran, of probes with seconds a run and steps between due ones."""
    budget = Budget(0.05, list(costs), allowance, steps=known)
    ran: dict[str, list[int]] = {name: [] for name in costs}
    waiting: list[str] = []
    for step in range(steps):
        due = [name for name, (_, every) in costs.items() if step % every == 0]
        if due or waiting:
            chosen, waiting = budget.choose(due, step, waiting), []
            spent: dict[str, float] = {}
            first = {n: setup / len(costs) for n in chosen if not ran[n]}
            for name in chosen:
                if budget.waits(name, sum(spent.values())):
                    waiting.append(name)
                    continue
                spent[name] = costs[name][0] + first.get(name, 0.0)
                ran[name].append(step)
            budget.spend(spent, first, 0.0)
            budget.took(due, dict.fromkeys(spent, True), step)
            if seen is not None:
                seen.append((step, list(spent), sum(costs[n][0] for n in spent)))
        budget.earn(STEP)
    return ran, budget


def gap(at: list[int], steps: int) -> float:
    """The longest stretch of the run without a point, as a share of it."""
    return max(b - a for a, b in pairwise([0, *at, steps])) / steps


@pytest.mark.parametrize("steps", [400, 600, 1000, 1500, 5000])
def test_a_run_of_any_length_ends_with_curves_and_within_its_budget(steps: int) -> None:
    ran, budget = simulated(steps, COSTS)
    assert min(map(len, ran.values())) >= 10
    assert max(gap(at, steps) for at in ran.values()) <= 0.25
    assert budget.spent <= 15 + 0.05 * steps * STEP
    assert len(ran["drift"]) >= min(0.9 * steps / 10, 130), "light ones run whenever they are due"


@pytest.mark.parametrize("steps", [400, 600, 1000, 1500])
def test_what_is_dear_has_as_many_points_as_the_rest_where_that_can_be_paid(steps: int) -> None:
    """A recurrent network: its laws take 15 steps of training, its sharpness 60."""
    costs = {"drift": (0.017, 10), "unit": (0.05, 25), "laws": (0.13, 25), "sharpness": (0.54, 25)}
    ran, budget = simulated(steps, costs, setup=3.8)
    assert min(map(len, ran.values())) >= 10
    assert max(gap(at, steps) for at in ran.values()) <= 0.3
    assert budget.spent <= 15 + 0.05 * steps * STEP


def test_where_little_can_be_paid_all_curves_are_sparse_alike() -> None:
    costs = {"drift": (0.01, 10), "laws": (0.5, 25), "sharpness": (1.0, 25)}
    ran, budget = simulated(600, costs, setup=4.0)
    assert 5 <= len(ran["sharpness"]) <= len(ran["laws"]) <= len(ran["sharpness"]) + 2
    assert len(ran["drift"]) > 20 and budget.spent <= 15 + 0.05 * 600 * STEP


@pytest.mark.parametrize("steps", [400, 600, 1500, 5000])
def test_a_run_whose_end_is_known_is_measured_evenly_up_to_there(steps: int) -> None:
    dear = COSTS | {"laws": (0.5, 25), "sharpness": (0.6, 25)}
    even, budget = simulated(steps, dear, known=steps)
    unknown, _ = simulated(steps, dear)
    for name, at in even.items():
        assert gap(at, steps) <= max(1.6 / len(at), 2 * dear[name][1] / steps)
        assert len(at) >= min(len(unknown[name]), 10)
    widest = [max(gap(of[n], steps) for n in dear) for of in (even, unknown)]
    late = 1.5 / steps if steps == BRIEF else 0.0  # planned for that length anyway: a step's wait
    assert widest[0] < widest[1] + late
    assert 0.8 * budget.allowed <= budget.spent <= budget.allowed


def test_a_run_that_goes_on_behind_its_end_is_still_measured() -> None:
    ran, budget = simulated(1500, COSTS, known=400)
    assert all(sum(step >= 400 for step in at) >= 2 for at in ran.values())
    assert budget.spent <= budget.allowed


def test_what_waits_as_it_is_not_due_comes_off_the_next_gap() -> None:
    ran, _ = simulated(400, {"a": (1.0, 25)}, setup=0.0, known=400)
    assert len(ran["a"]) >= 14 and max(b - a for a, b in pairwise(ran["a"])) == 50


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "400"])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="steps"):
        Attachment(steps=steps)


@pytest.mark.parametrize(
    ("told", "own", "known"),
    [(90, None, 90), (90, 7, 7), (math.inf, None, None), (-1, None, None), (None, None, None)],
)
def test_a_framework_tells_where_a_run_ends_unless_its_user_does(
    monkeypatch: pytest.MonkeyPatch, told: Any, own: int | None, known: int | None
) -> None:
    import eqtoolbox.integrations.attachment as module

    given: dict[str, Any] = {}
    monkeypatch.setattr(
        module, "attach", lambda *_, **options: given.update(options) or MagicMock()
    )
    Attachment(steps=own).start(nn.Linear(1, 1), None, 0, steps=told)
    assert given["steps"] == known


def test_a_pool_that_whoever_comes_first_may_empty_makes_no_curves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Budget, "_gap", lambda self, step: lambda name: 1.0)
    ran, _ = simulated(1500, COSTS)
    assert max(gap(at, 1500) for at in ran.values()) > 0.4, "early points take it all"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_spent_is_bounded_whatever_runs_cost(seed: int) -> None:
    draw = random.Random(seed)
    costs = {
        f"p{k}": (10 ** draw.uniform(-3, 0.5), draw.choice([1, 5, 25, 100]))
        for k in range(draw.randint(1, 6))
    }
    steps, setup = draw.choice([50, 400, 3000]), draw.choice([0.0, 3.0, 60.0])
    ran, budget = simulated(steps, costs, setup)
    first = setup + sum(cost for cost, _ in costs.values())
    assert budget.spent <= max(15.0, first + 0.2 * 15.0) + 0.05 * steps * STEP + 1e-9
    assert all(ran.values()), "each has a first point"


def test_a_dear_set_up_does_not_silence_what_is_light() -> None:
    ran, _ = simulated(600, COSTS, setup=100.0)
    assert len(ran["drift"]) >= 30
    assert len(ran["errors"]) >= 10


def test_heavy_ones_take_turns() -> None:
    seen: list[Any] = []
    heavy = {"light": (0.01, 25), "a": (0.4, 25), "b": (0.4, 25)}
    simulated(200, heavy, setup=1.2, seen=seen)
    assert [now for _, now, _ in seen[:3]] == [["light"], ["a"], ["b"]], "first runs of 0.4 s more"
    assert [step for step, *_ in seen[:3]] == [0, 1, 2]
    assert max(cost for _, _, cost in seen) <= 0.5
    assert {"a", "b"} <= {n for step, now, _ in seen if step in (50, 51) for n in now}


def test_who_is_due_soon_joins_who_is_measured_and_no_oftener_for_it() -> None:
    seen: list[Any] = []
    ran, _ = simulated(400, {"a": (0.3, 25), "b": (0.25, 25)}, setup=0.2, seen=seen)
    together = [step for step, now, _ in seen if len(now) == 2]
    assert len(together) > 0.7 * max(map(len, ran.values())), "what they need is paid once"
    for at in ran.values():
        assert 10 <= len(at) <= 14, "every 40 steps, as if alone"
        assert gap(at, 400) <= 50 / 400 + 1e-9


@pytest.mark.parametrize("apart", [0.05, 0.2])
def test_the_dearest_is_saved_for_where_training_earns_little(
    monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    monkeypatch.setattr(f"{__name__}.STEP", 0.05)
    costs = {"drift": (0.02, 10), "a": (0.05, 25), "b": (0.4, 25), "d": (0.4, 25)}
    ran, _ = simulated(3000, costs | {"sharpness": (0.4 + apart, 25)}, setup=1.0)
    late = {name: sum(step > 1500 for step in at) for name, at in ran.items()}
    assert late["sharpness"] >= 1, "what is left was paid to others who cost a little less"
    assert late["drift"] > 10 * late["b"], "what is slight never waits for it"


def test_what_is_not_paid_when_its_turn_comes_is_saved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision transformer: what cheaper ones have left was never enough for its sharpness."""
    monkeypatch.setattr(f"{__name__}.STEP", 0.055)
    costs = {"drift": (0.06, 10), "unit": (0.25, 25), "data": (0.45, 25), "laws": (0.6, 25)}
    ran, budget = simulated(1500, costs | {"sharpness": (1.0, 25)}, setup=4.0)
    numbers = {name: len(at) for name, at in ran.items()}
    assert numbers["sharpness"] >= 4 and numbers["drift"] > 10
    assert numbers["data"] <= numbers["sharpness"] + 2
    assert max(ran["sharpness"]) > 700 and budget.spent <= budget.allowed


@pytest.mark.parametrize(("seconds", "waits"), [(0.02, False), (0.1, True)])
def test_a_first_run_may_take_ten_times_what_others_did(seconds: float, waits: bool) -> None:
    budget = Budget(0.05, ["light", "heavy"])
    assert budget.waits("heavy", seconds) is waits
    budget.spend({"heavy": 0.3}, {}, 0.0)
    assert not budget.waits("heavy", seconds), "what it takes is known now"
    assert budget.waits("heavy", 0.6)


def with_light(steps: int, whole: float, light: float) -> tuple[list[int], list[int], Budget]:
    """Steps of whole and of light measurements of a probe that can measure less for less."""
    budget = Budget(0.05, ["sharpness"], lightens=["sharpness"])
    at: dict[str, list[int]] = {"sharpness": [], "sharpness" + LIGHT: []}
    for step in range(steps):
        due = ["sharpness"] if step % 25 == 0 else []
        if due:
            (name,) = budget.choose(due, step) or ("",)
            if name:
                at[name].append(step)
                budget.spend({name: whole if name == "sharpness" else light}, {}, 0.0)
            budget.took(due, {name: True} if name else {}, step)
        budget.earn(STEP)
    return at["sharpness"], at["sharpness" + LIGHT], budget


@pytest.mark.parametrize("steps", [400, 600, 1500])
def test_what_is_not_paid_as_a_whole_is_measured_lightly(steps: int) -> None:
    whole, light, budget = with_light(steps, 2.0, 0.3)
    assert (whole[0], light[0]) == (0, 25), "the first is whole, and the next one light"
    assert len(whole) >= 2
    assert len(light) >= 5 and not {*whole} & {*light}
    assert gap(sorted(whole + light), steps) < gap(whole, steps)
    assert len(whole) + len(light) >= 10
    assert budget.spent <= 15 + 0.05 * steps * STEP
    had, due = budget.points["sharpness"]
    assert (had, due) == (len(whole) + len(light), steps // 25)
    assert had <= budget.expected(2.0)["sharpness"][0] <= due


def test_a_whole_one_behind_a_first_light_one_waits_until_it_is_paid() -> None:
    """It counts as three of them before it ran."""
    found = []
    for allowance in (3.0, 100.0):
        budget = Budget(0.05, ["sharpness"], allowance, lightens=["sharpness"])
        assert budget.choose(["sharpness"], 0) == ["sharpness"], "nobody knows what it takes"
        budget.spend({"sharpness" + LIGHT: 0.3}, {}, 0.0)
        budget.took(["sharpness"], {"sharpness": True}, 0)
        assert budget.setup == 0.3, "the first that ran"
        for step in range(25, 400, 25):
            chosen = budget.choose(["sharpness"], step)
            budget.spend({n: 0.9 if n == "sharpness" else 0.3 for n in chosen}, {}, 0.0)
            budget.took(["sharpness"], dict.fromkeys(chosen, True), step)
        found.append([budget._wishes["sharpness" + how].runs for how in ("", LIGHT)])
    assert found[0][0] == 0 and found[0][1] >= 7
    assert found[1][0] == 15, "all are whole where that is paid"


@pytest.mark.parametrize(
    ("whole", "budget", "first"), [(1e9, 0.05, 0.5), (1e9, None, 1.0), (0.0, 0.05, 1.0)]
)
def test_a_first_measurement_that_would_be_cut_short_is_light(
    whole: float, budget: float | None, first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Probe, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("number", 0.5 if snapshot.light else 1.0)

    for name, value in {"measure": measure, "lightens": True, "whole": whole}.items():
        monkeypatch.setattr(Quick, name, value)
    run(12, [sink := MemorySink()], budget)
    values = [r.value for r in sink.records if r.name == "quick/number"]
    assert values[0] == first and 1.0 in values[1:], "once it is known to be paid it is whole"


def test_what_is_paid_is_always_measured_as_a_whole() -> None:
    whole, light, _ = with_light(600, 0.02, 0.01)
    assert len(whole) == 24 and not light
    budget = Budget(None, ["sharpness"], lightens=["sharpness"])
    budget.spend({"sharpness": 100.0}, {}, 0.0)
    assert budget.choose(["sharpness"], 1) == ["sharpness"], "no budget, nothing light"


def test_asking_changes_nothing() -> None:
    """Loops that count for themselves ask for a step that is another one in the end."""
    _, budget = simulated(300, COSTS)
    before = budget.state_dict()
    assert budget.choose(list(COSTS), 301) == budget.choose(list(COSTS), 301)
    assert budget.state_dict() == before


def test_where_the_first_light_one_is_a_whole_one_that_waits_until_it_is_paid() -> None:
    budget = Budget(0.05, ["law"], 0.0, lightens=["law"], light_first=["law"])
    assert budget.choose(["law"], 0) == ["law" + LIGHT]
    budget.spend({"law" + LIGHT: 2.0}, {}, 0.0)
    assert budget.choose(["law"], 25) == ["law" + LIGHT], "what less costs, nobody knows yet"
    budget.spend({"law" + LIGHT: 0.2}, {}, 0.0)
    assert budget.choose(["law"], 50) == [], "neither is paid"
    rich = Budget(0.05, ["law"], 100.0, lightens=["law"], light_first=["law"])
    rich.spend({"law" + LIGHT: 0.1}, {}, 0.0)
    assert rich.choose(["law"], 25) == ["law"]


def test_without_a_budget_exactly_what_is_due_runs() -> None:
    budget = Budget(None, ["a", "b"])
    for step in range(4):
        assert budget.choose(["a", "b"], step) == ["a", "b"]
        assert not budget.waits("b", 100.0)
        budget.spend({"a": 100.0, "b": 1.0}, {}, 0.0)


def test_a_resumed_budget_chooses_as_one_that_went_on() -> None:
    _, budget = simulated(300, COSTS)
    again = Budget(0.05, list(COSTS))
    again.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    for step in range(300, 600, 25):
        now = again.choose(list(COSTS), step)
        assert now == budget.choose(list(COSTS), step)
        for one in (budget, again):
            one.took(list(COSTS), dict.fromkeys(now, True), step)
            one.earn(25 * STEP)


def test_the_budget_of_a_checkpoint_of_before_is_taken() -> None:
    budget = Budget(0.05, ["a"])
    budget.load_state_dict(
        {"training": 9.0, "probing": 0.2, "setup": 1.0, "balance": {"a": 0.1}, "costs": {"a": 0.3}}
    )
    assert (budget.training, budget.spent) == (9.0, 1.2)
    assert budget.choose(["a"], 900) == ["a"]


def test_runs_without_an_answer_are_not_said_to_want_budget() -> None:
    """As of a run that diverged: more of them would answer no more."""
    budget = Budget(0.05, ["laws"])
    for step in range(300):
        due = ["laws"] if step % 10 == 0 else []
        if budget.choose(due, step):
            budget.spend({"laws": 1.0}, {}, 0.0)
            budget.took(due, {"laws": step == 0}, step)
        budget.earn(STEP)
    assert budget.points["laws"][0] == 1
    assert budget.expected(2.0)["laws"][0] <= 3


def test_twice_the_budget_would_give_about_as_many_points_as_it_does() -> None:
    dear = {"laws": (1.0, 10), "sharpness": (2.0, 10)}
    ran, budget = simulated(400, dear, setup=0.0)
    promised = {name: points for name, (points, _) in budget.expected(2.0).items()}
    twice, _ = simulated(400, dear, setup=0.0, allowance=30.0)
    for name, at in ran.items():
        assert len(at) < promised[name] <= 1.6 * len(twice[name])
        assert promised[name] >= 0.6 * len(twice[name])


def test_the_last_line_tells_points_and_what_was_spent(capsys: pytest.CaptureFixture[str]) -> None:
    run(40, [sink := MemorySink()], budget=0.05)
    (line,) = capsys.readouterr().err.splitlines()
    measured = sum(r.name == "quick/number" and r.status == "ok" for r in sink.records)
    assert line.startswith("eqtoolbox: 40 steps, points: ")
    assert f"quick {measured}" in line
    assert " s spent of 15 s (15 s and 5.0% of" in line
    assert last(sink, "cost/spent") < last(sink, "cost/allowed")


class Silent(Probe):
    """Never has anything to measure."""

    name, headline, mode = "silent", "number", "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("other", 1.0)
        raise NotApplicable("there is none")


def test_what_gave_no_number_is_no_point(capsys: pytest.CaptureFixture[str]) -> None:
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[Quick(), Silent()], schedule=2, budget=None
    ) as monitor:
        loss_fn = monitor.loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        for _ in range(6):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    assert "6 steps, points: quick 3, silent 0 of 3; " in capsys.readouterr().err


def test_training_time_is_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """What writing takes behind a measured step is the monitor's, and not taken off twice."""
    told: list[float] = []
    monkeypatch.setattr(Budget, "earn", lambda self, seconds: told.append(seconds))
    run(6, [MemorySink(), SlowSink()])
    assert min(told) > -1e-3, "a sink takes 10 ms a row"


@pytest.mark.parametrize("allowance", [-1, math.nan, math.inf, True, "15"])
def test_an_allowance_that_is_no_number_of_seconds_is_refused(allowance: Any) -> None:
    with pytest.raises(ValueError, match="allowance is a number of seconds >= 0, got"):
        Budget(0.05, ["a"], allowance)
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="allowance is a number of seconds >= 0, got"):
        eq.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), allowance=allowance)


@pytest.mark.parametrize("make", [lambda b: Attachment(budget=b), lambda b: Budget(b, ["a"])])
@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (5, r"got 5; did you mean 0\.05\?"),
        (2.5, r"got 2\.5; did you mean 0\.025\?"),
        (0, "at most 1, or None for no limit, got 0$"),
        (-0.05, "got -0.05$"),
        (True, "got True$"),
        (1000, "got 1000$"),
        (float("nan"), "got nan$"),
    ],
)
def test_a_budget_that_is_no_share_is_refused(make: Any, budget: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make(budget)
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=why):
        eq.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), budget=budget)


def test_shares_up_to_one_are_taken() -> None:
    assert [Budget(share, []).share for share in (0.05, 1, None)] == [0.05, 1, None]


# -- one cause, one warning ---------------------------------------------------------------------


def vectors(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("loss", "status", "why"),
    [
        (vectors, "not_applicable", "expected the loss as a scalar tensor"),
        (lambda model, batch: "none", "not_applicable", "expected the loss as a scalar tensor"),
    ],
)
def test_an_unusable_loss_is_warned_of_once_and_each_probe_says_why(
    loss: Any, status: str, why: str
) -> None:
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with eq.attach(model, optimizer, schedule=1, budget=None, sinks=[sink]) as monitor:
            loss_fn = monitor.loss(loss)
            for _ in range(5):
                loss_fn(model, blobs())
                F.cross_entropy(model(blobs()[0]), blobs()[1]).backward()
                optimizer.step()
    assert [str(w.message).count(why) for w in said] == [1]
    silent = {r.probe for r in sink.records if r.status == status and why in r.note}
    assert silent >= {"equivariance", "noether", "curvature", "discrete"}
    assert not [r for r in sink.records if r.status == "failed"]


def test_a_loss_that_raises_in_every_probe_is_warned_of_once() -> None:
    class Failing(Probe):
        headline, mode = "number", "train"

        def __init__(self, name: str) -> None:
            self.name = name  # type: ignore[misc]

        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            raise ValueError("the same cause")

    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Failing("one"), Failing("two")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with eq.attach(model, optimizer, probes=probes, budget=None, sinks=[sink]) as monitor:
            loss_fn = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
            for _ in range(5):
                loss_fn(model, blobs()).backward()
                optimizer.step()
    assert len([w for w in said if "the same cause" in str(w.message)]) == 1
    failed = [(r.name, r.status) for r in sink.records if r.status == "failed"]
    assert failed == [("one/number", "failed"), ("two/number", "failed")] * 3


class Searching(Probe):
    """Finds something out for the whole run, in `measure` and whenever `anew`."""

    name, headline, mode = "searching", "number", "train"
    anew = False

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        about = snapshot.step if self.anew else 0
        snapshot.shared.get("slow", about, lambda: time.sleep(0.5))
        yield Measurement("number", 1.0)


@pytest.mark.parametrize("anew", [False, True])
def test_what_is_found_out_for_the_run_is_not_expected_to_cost_again(anew: bool) -> None:
    torch.manual_seed(0)
    model, probe = mlp(6, 8, 3), Searching()
    probe.anew = anew
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, probes=[probe], budget=None) as monitor:
        loss_fn = monitor.loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        for _ in range(2):
            loss_fn(model, blobs()).backward()
            optimizer.step()
        assert monitor._budget.state_dict()["wishes"]["searching"]["cost"] < 0.4
        assert (monitor._budget.probing > 0.5) == anew  # what was spent is counted all the same
