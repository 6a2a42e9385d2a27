"""The budget counts everything that the monitor does, set-up apart, and refuses per cents."""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.budget import LOSS, Budget
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import blobs, mlp


class Quick(Probe):
    name, headline, mode = "quick", "number", "train"

    def reference(self, snapshot: Any, rng: Any) -> float:
        time.sleep(0.05)
        return 0.0

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        yield Measurement("number", 1.0)


def run(steps: int, sinks: list[Any], budget: float | None = None, pause: float = 0.0) -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[Quick()], schedule=1, budget=budget, sinks=sinks
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
    run(20, [sink], pause=0.002)
    assert last(sink, "cost/setup") >= 1.0
    assert last(sink, "cost/overhead") < 5, (
        "the second of the reference, beside 40 ms, is not in it"
    )
    assert sum(r.name == "cost/setup" for r in sink.records) == 1, "told when it changes"


class SlowSink(Sink):
    def write(self, record: Any) -> None:
        time.sleep(0.001)

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


def test_a_dear_catch_is_left_out_with_the_probes_it_would_be_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import eqtoolbox.watch.capture.loss_capture as module

    fresh: Callable[[Any], Any] = module.fresh
    sink, caught = MemorySink(), []
    monkeypatch.setattr(
        module, "fresh", lambda batch: (caught.append(1), time.sleep(0.01), fresh(batch))[2]
    )
    run(60, [sink], budget=0.05, pause=0.002)
    assert len(caught) < 10, "120 ms of training pay for less than one catch"
    measured = sum(r.name == "quick/number" and r.status == "ok" for r in sink.records)
    assert measured + last(sink, "cost/skipped/quick") == 60


def test_what_hooks_take_comes_off_the_income() -> None:
    budget = Budget(0.1, ["a"])
    budget.spend({"a": 1.0}, {"a": 0.9}, shared=0.0)
    assert (budget.setup, budget.probing) == (1.0, 0.0)
    assert not budget.affords("a")
    budget.earn(3.0)
    assert budget.affords("a"), "it costs 0.1 s again, and half of 0.3 s is its own"
    budget.keep(0.2)
    assert not budget.affords("a")
    assert budget.overhead == pytest.approx(0.2 / 3)


def test_what_a_step_makes_necessary_is_shared_by_what_was_measured() -> None:
    budget = Budget(0.1, ["a", "b"])
    for _ in range(2):
        budget.spend({"a": 1.0, LOSS: 0.0}, {}, shared=0.5)
    assert budget.probing == pytest.approx(1.5)
    budget.earn(0.1 * 375)
    assert not budget.affords("a"), "its price is 1.25, and it owes that"
    assert budget.affords("b"), "it never ran"


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
        snapshot.shared.get("slow", about, lambda: time.sleep(0.05))
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
        assert monitor._budget._costs["searching"] < 0.04
        assert (monitor._budget.probing > 0.05) == anew  # what was spent is counted all the same
