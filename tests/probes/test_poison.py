"""Every probe on steps that hold nothing to measure: NaN, infinities, zeros, constants, one sample.

No number of such a step may look like one: it has a status, or says that it is trivial.
"""

import math

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.attach.entry import KINDS
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink

MONITOR = ("training", "monitor", "cost")
BAD = ("nan", "inf", "-inf")


def network(normalised: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4) if normalised else nn.Identity(),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip


def run(model: nn.Module, batches: list[tuple[Tensor, Tensor]], step: bool = True) -> list[Record]:
    """The records of all probes, one step a batch."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.05), MemorySink()
    criterion = nn.CrossEntropyLoss()
    probes = [kind() for kind in KINDS]
    with eq.attach(
        model, optimizer, criterion=criterion, probes=probes, schedule=1, budget=None, sinks=[sink]
    ):
        for x, y in batches:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            if not step:
                optimizer.zero_grad()
            optimizer.step()
    return sink.records


def batch(samples: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 1, 6, 6, generator=rng)
    return x, torch.randint(0, 3, (samples,), generator=rng)


def of_probes(records: list[Record], step: int) -> list[Record]:
    """What probes said of a step; losses are told as they were heard."""
    told = [r for r in records if r.step == step and r.probe not in MONITOR]
    return [r for r in told if r.name != "vital/losses"]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("when", [0, 1])
def test_no_record_of_a_step_with_broken_parameters_is_ok(value: str, when: int) -> None:
    model = network()
    spoiled = batch()
    with torch.no_grad():
        if when == 0:
            model[5].weight[1, 2] = float(value)
        else:
            spoiled[0][0, 0, 0, 0] = float(value)
    records = run(model, [spoiled, batch(seed=1)])
    rows = of_probes(records, when)
    assert {r.probe for r in rows} == {kind.name for kind in KINDS}
    assert {r.status for r in rows} == {"non_finite"}
    assert all(math.isnan(r.value) and r.note for r in rows)


def test_the_step_before_is_measured_and_so_are_sound_ones() -> None:
    """The must-fail twin: the same network and batches, nothing spoiled."""
    rows = of_probes(run(network(), [batch(), batch(seed=1)]), 1)
    assert {r.probe for r in rows if r.status == "ok"} >= {"conservation", "noether", "curvature"}


@pytest.mark.filterwarnings("ignore:eqtoolbox:RuntimeWarning")
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_reads_a_broken_batch_gives_no_number_and_fails_by_nothing(value: str) -> None:
    spoiled = batch()
    spoiled[0][0, 0, 0, 0] = float(value)
    for batches, at in (([spoiled], 0), ([batch(seed=1), spoiled], 1)):
        records = run(network(), batches, step=False)
        rows = [r for r in of_probes(records, at) if not r.name.startswith("conservation/")]
        of_weights = {"discrete/distance", "discrete/duplicates", "histogram/weight"}
        sound = {*of_weights, "vital/not_finite"}  # weights are sound; the last says what is not
        seen = [r for r in rows if "/".join(r.name.split("/")[:2]) not in sound]
        assert not [r.name for r in seen if r.status == "ok"]
        assert not [r.note for r in of_probes(records, at) if r.status == "failed"]


def test_a_drift_to_nan_is_no_drift_of_zero() -> None:
    model, spoiled = network(), batch()
    spoiled[0][0, 0, 0, 0] = math.nan
    records = run(model, [batch(seed=1), spoiled])
    assert all(bool(p.isnan().any()) for p in model[5].parameters())
    drifts = [r for r in of_probes(records, 1) if r.probe == "conservation"]
    assert [r.status for r in drifts] == ["non_finite"]
    assert "the step made 0.weight NaN" in drifts[0].note


def constants() -> dict[str, nn.Sequential]:
    zero, constant, dead = network(), network(), network()
    with torch.no_grad():
        for p in zero.parameters():
            p.zero_()
        zero[7].bias += torch.tensor([1.0, 2.0, 3.0])
        constant[7].weight.zero_()
        dead[5].bias -= 100.0
    return {"zero": zero, "constant": constant, "dead": dead}


@pytest.mark.parametrize("name", constants())
def test_constant_outputs_have_no_symmetry_that_holds(name: str) -> None:
    records = of_probes(run(constants()[name], [batch()]), 0)
    verdicts = {r.verdict for r in records if r.name.startswith("equivariance/relative_error")}
    assert verdicts == {"trivial"}
    assert not [r for r in records if r.probe == "equivariance" and r.verdict == "holds"]


def test_outputs_that_vary_and_keep_a_symmetry_do_hold() -> None:
    """The must-fail twin of constant outputs: the mean of each image."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    records = of_probes(run(model, [batch()]), 0)
    verdicts = {r.verdict for r in records if r.name.startswith("equivariance/relative_error")}
    assert verdicts == {"holds"}


@pytest.mark.parametrize("constant", [False, True])
def test_one_sample_tells_a_constant_output_from_an_invariant_one(constant: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    if constant:
        nn.init.zeros_(model[4].weight)
    records = of_probes(run(model, [batch(1)]), 0)
    verdicts = {r.verdict for r in records if r.name.startswith("equivariance/relative_error")}
    assert verdicts == {"trivial" if constant else "holds"}
