"""Light measurements of the laws: the same for less, beside floors that were found before."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.floors import Floors
from eqtoolbox.probes.light_laws import _find_anew
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.right_sides import RightSides
from eqtoolbox.record.record import Record
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import Snapshot
from tests.conftest import blobs, mlp
from tests.probes.test_noether import Kernel, Normed, images

ORDERS = ("zeroth_order", "first_order", "second_order")
KEPT = "floor_of_step"
Loss = Callable[[nn.Module, Any], Tensor]
Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Lightly(Noether):
    """The laws, measured lightly at some steps."""

    at: tuple[int, ...] = ()

    def measure(self, snapshot: Snapshot, reference: Any, rng: Any) -> Iterator[Measurement]:
        light = snapshot.step in self.at
        yield from super().measure(replace(snapshot, light=light), reference, rng)


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def measured(
    model: nn.Module,
    batch: Any,
    light: Iterable[int],
    steps: int = 3,
    loss: Loss | None = None,
    losses: tuple[Loss, ...] = (),
    begins: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> dict[Key, Record]:
    """Records by step and name, of losses in turn."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.05), MemorySink()
    probes, options = [Lightly(at=tuple(light))], {"budget": None, **options}
    with eq.attach(
        model, optimizer, probes=probes, sinks=[sink], on_error="raise", schedule=1, **options
    ) as monitor:
        turns = [monitor.loss(one) for one in losses or (loss or entropy,)]
        for step in range(steps):
            begins(step)
            optimizer.zero_grad()
            turns[step % len(turns)](model, batch).backward()
            optimizer.step()
    return {(r.step, r.name): r for r in sink.records}


def of_laws(found: dict[Key, Record], step: int) -> dict[str, Record]:
    """The residuals of every family at a step."""
    return {n: r for (s, n), r in found.items() if s == step and n.split("/")[1] in ORDERS}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "kernel":
        return Kernel()
    return Normed() if kind == "normalised" else mlp(6, 16, 8, 3)


@pytest.mark.parametrize("kind", ["relu", "normalised", "kernel"])
def test_a_light_measurement_has_every_law_as_a_whole_one_has_it(kind: str) -> None:
    batch = images() if kind == "normalised" else blobs()
    whole = of_laws(measured(network(kind), batch, light=()), 2)
    found = measured(network(kind), batch, light=(2,))
    light, before = of_laws(found, 2), of_laws(found, 1)
    assert light.keys() == whole.keys() and len(light) >= 6
    for name, row in light.items():
        assert (row.value, row.verdict) == (whole[name].value, whole[name].verdict), name
        assert KEPT not in whole[name].facts
    for name, row in light.items() if kind != "kernel" else ():  # whose floors are as random as p
        assert (row.facts.count(KEPT), row.verdict) == (1, "holds"), name
        predicted = name.endswith(("/scale", "/homogeneity")) and kind == "normalised"
        assert row.floor is not None and before[name].floor is not None
        kept = row.floor == pytest.approx(before[name].floor, rel=1e-12)
        shared = "second_order" in name and row.floor > before[name].floor  # by the largest of all
        assert kept or shared or (predicted and row.floor > 0), name
        assert ((1, "noether/bracket") in found, (2, "noether/bracket") in found) == (True, False)


def test_floors_that_are_found_anew_are_never_below_rounding() -> None:
    floors, none = Floors(), lambda sides: 0.0
    snapshot = SimpleNamespace(step=3)
    rounding = SimpleNamespace(eps=1e-7, snapshot=snapshot, of_first=none, of_second=none)
    row = Measurement("second_order", 1e-9, "rescale", floor=0.0, verdict="violated")
    zero = Measurement("zeroth_order", 0.0, "rescale", floor=1e-7)
    noise = {"rescale": 0.0, "scale": 1e-6, "translation": 3e-5}
    near = [SimpleNamespace(status="approximate")]
    families = {"rescale": [], "translation": [], "scale": near}
    sides = SimpleNamespace(noise=noise, first_noise=0.0, families=families)
    totals = dict.fromkeys(families, 2.0)
    given: Any = ([row], floors, rounding, sides, {"rescale": zero}, totals)
    _find_anew(*given)
    assert floors.of("second_order", "rescale") == 1e-7
    assert floors.of("second_order", "translation") == 1.5e-5, "it shared a product until now"
    assert floors.of("second_order", "scale") == 0.0, "nothing was asked of its epsilon"


def test_a_light_measurement_evaluates_the_loss_half_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, seen = Objective.loss, list[int]()
    monkeypatch.setattr(Objective, "loss", lambda *given: (seen.append(1), evaluate(*given))[1])

    def calls(steps: int, light: tuple[int, ...] = ()) -> int:
        seen.clear()
        measured(network("relu"), blobs(), light, steps)
        return len(seen)

    before = calls(2)
    assert 0 < calls(3, light=(2,)) - before <= (calls(3) - before) / 2


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_a_law_that_does_not_hold_lightly_is_measured_as_a_whole(size: float) -> None:
    """The loss gets a penalty after its laws were found to hold."""
    penalty = torch.zeros(())

    def spoilt(model: nn.Module, batch: Any) -> Tensor:
        weight: Tensor = model[0].weight  # type: ignore[index, assignment]
        return entropy(model, batch) + penalty * weight.square().sum()

    def begins(step: int) -> None:
        penalty.fill_(size if step == 2 else 0.0)

    found = measured(network("relu"), blobs(), (1, 2), loss=spoilt, begins=begins)
    whole = of_laws(measured(network("relu"), blobs(), (), loss=spoilt, begins=begins), 2)
    assert {r.facts.count(KEPT) for r in of_laws(found, 1).values()} == {0}
    for name, row in of_laws(found, 2).items():
        assert row.verdict == whole[name].verdict and KEPT not in row.facts, name
    for order in ORDERS[1:]:  # at order 0 this law is of the outputs alone
        assert whole[f"noether/{order}/homogeneity"].verdict == "violated"
        assert whole[f"noether/{order}/translation"].verdict == "holds"
    assert (2, "noether/bracket") in found


@pytest.mark.parametrize("order", ORDERS[1:])
def test_where_rounding_has_grown_floors_of_that_order_are_found_anew(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Floors.of

    def small(floors: Floors, quantity: str, target: str) -> float:
        """As if rounding had been a thousandth of what it is."""
        old = quantity == order and floors.found(order) < 2
        return of(floors, quantity, target) / (1e3 if old else 1.0)

    monkeypatch.setattr(Floors, "of", small)
    found = measured(network("relu"), blobs(), light=(2,))
    rows = of_laws(found, 2)
    assert {r.verdict for r in rows.values()} == {"holds"}
    told = {n.split("/")[1]: r.facts[KEPT] for n, r in rows.items()}
    assert told == {quantity: 2 if quantity == order else 1 for quantity in ORDERS}
    assert (2, "noether/bracket") not in found, "and nothing else is"


def test_floors_of_one_loss_do_not_judge_another() -> None:
    smooth = lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1)
    found = measured(network("relu"), blobs(), light=range(4), steps=4, losses=(entropy, smooth))
    told = [{r.facts.count(KEPT) for r in of_laws(found, step).values()} for step in range(4)]
    assert told == [{None}, {None}, {0}, {1}], "each is first measured as a whole"


def test_floors_go_on_with_a_resumed_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network("relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def attached(at: tuple[int, ...], **options: Any) -> Any:
        probes = [Lightly(at=at)]
        return eq.attach(model, optimizer, probes=probes, budget=None, schedule=1, **options)

    def trained(monitor: Any) -> None:
        loss = monitor.loss(entropy)
        optimizer.zero_grad()
        loss(model, blobs()).backward()
        optimizer.step()

    with attached((), sinks=[]) as monitor:
        trained(monitor)
        saved = monitor.state_dict()
    sink = MemorySink()
    with attached((1,), sinks=[sink]) as monitor:
        monitor.load_state_dict(saved)
        trained(monitor)
    rows = of_laws({(r.step, r.name): r for r in sink.records}, 1)
    assert rows and {r.facts.count(KEPT) for r in rows.values()} == {0}


def test_where_the_budget_is_short_the_first_finds_all_and_the_second_light() -> None:
    sink, model = MemorySink(), network("relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"budget": 1e-6, "allowance": 0.0, "schedule": 1}
    with eq.attach(model, optimizer, probes=[Noether()], sinks=[sink], **options) as monitor:
        loss = monitor.loss(entropy)
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, blobs()).backward()
            optimizer.step()
    found = {(r.step, r.name): r for r in sink.records}
    told = [{r.facts.count(KEPT) for r in of_laws(found, step).values()} for step in range(2)]
    assert told == [{None}, {0}]


def test_epsilon_is_asked_lightly_only_where_a_law_fails_by_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it makes of a law differs between steps by more than a verdict allows."""
    asked, ask = list[bool](), RightSides.asked

    def counted(*given: Any) -> bool:
        asked.append(ask(*given))
        return asked[-1]

    monkeypatch.setattr(RightSides, "asked", counted)
    found = measured(network("normalised"), images(), light=range(1, 8), steps=8)
    for step in range(1, 8):
        rows = of_laws(found, step)
        assert {r.facts.count(KEPT) for r in rows.values()} == {0}, step
        assert {r.verdict for r in rows.values()} == {"holds"}
    floors = [r.floor for (s, n), r in found.items() if n == "noether/first_order/scale" and s]
    above = sum(floor != found[0, "noether/first_order/scale"].floor for floor in floors)
    assert 0 < above < 7, "at some steps what is kept explains it, at others the prediction does"
    assert 0 < len(asked) < 2 * 7 and all(asked)


def large(samples: int = 32, size: int = 16) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network whose images take more than Python does."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(*layers, nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(16 * (size - 4) ** 2, 5))
    return model, (torch.randn(samples, 3, size, size), torch.randint(5, (samples,)))


@pytest.mark.parametrize("memory", [1.25, None])
def test_light_measurements_of_a_large_batch_take_a_quarter_of_it(memory: float | None) -> None:
    model, batch = large()
    found = measured(model, batch, light=(1, 2, 3), steps=5, memory=memory)
    told = [
        {(r.facts.count("samples_used"), r.facts.count(KEPT)) for r in of_laws(found, k).values()}
        for k in range(5)
    ]
    assert told == [{(None, None)}, {(8, None)}, {(8, 1)}, {(8, 1)}, {(None, None)}]
    for step in range(5):
        rows = of_laws(found, step)
        assert len(rows) >= 9 and {r.verdict for r in rows.values()} == {"holds"}, step
        assert rows.keys() == of_laws(found, 0).keys()


@pytest.mark.parametrize(
    ("samples", "size", "used"),
    [(64, 24, 8), (128, 16, 16), (32, 24, 8), (16, 32, 8), (12, 32, None), (32, 8, None)],
)
def test_the_larger_a_batch_the_smaller_the_part_that_is_taken(
    samples: int, size: int, used: int | None
) -> None:
    """Down to an eighth of it, and to eight samples, or to four without batch normalisation."""
    model, batch = large(samples, size)
    rows = of_laws(measured(model, batch, light=(1,), steps=2), 1)
    assert {r.facts.count("samples_used") for r in rows.values()} == {used}
    assert {r.verdict for r in rows.values()} == {"holds"}
    model[1] = nn.GroupNorm(4, 16)  # type: ignore[index]
    rows = of_laws(measured(model, batch, light=(1,), steps=2), 1)
    fewer = None if size == 8 else max(samples // 8, 4)
    assert {r.facts.count("samples_used") for r in rows.values()} == {fewer}


@pytest.mark.usefixtures("planted")
def test_a_law_that_a_quarter_of_the_batch_breaks_is_said_to_be_broken() -> None:
    model, batch = large()
    penalty = torch.zeros(())

    def spoilt(model: nn.Module, batch: Any) -> Tensor:
        weight: Tensor = model[0].weight  # type: ignore[index, assignment]
        return entropy(model, batch) + penalty * weight.square().sum()

    def begins(step: int) -> None:
        penalty.fill_(1e-2 if step == 3 else 0.0)

    light = measured(model, batch, (1, 2, 3), steps=4, loss=spoilt, begins=begins)
    model, _ = large()
    whole = measured(model, batch, (), steps=4, loss=spoilt, begins=begins)
    for step, broken in ((2, False), (3, True)):
        few, every = of_laws(light, step), of_laws(whole, step)
        assert {n: r.verdict for n, r in few.items()} == {n: r.verdict for n, r in every.items()}
        assert ("violated" in {r.verdict for r in few.values()}) == broken
        assert {r.facts.count("samples_used") for r in few.values()} == {8}


def test_a_loss_that_takes_its_whole_batch_alone_is_measured_on_that() -> None:
    model, batch = large()

    def strict(model: nn.Module, batch: Any) -> Tensor:
        assert len(batch[0]) == 32, "pairs with a table of 32 rows"
        return entropy(model, batch)

    found = measured(model, batch, light=(1, 2), loss=strict)
    for step in range(3):
        rows = of_laws(found, step)
        assert {r.verdict for r in rows.values()} == {"holds"}, step
        assert not any("samples_used" in r.facts for r in rows.values())


def edges() -> tuple[nn.Module, Any]:
    """A graph, whose nodes are rows that belong together."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 128, bias=False), nn.Linear(128, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            out: Tensor = self.second(h.index_add(0, edge_index[1], h[edge_index[0]]))
            return out

    torch.manual_seed(0)
    nodes = (torch.randn(600, 8), torch.randint(600, (2, 2000)), torch.randint(3, (600,)))
    return Graph(), nodes


def test_the_rows_of_a_graph_are_never_cut_apart() -> None:
    model, batch = edges()
    loss = lambda model, batch: F.cross_entropy(model(batch[0], batch[1]), batch[2])
    found = measured(model, batch, light=(1, 2, 3, 4), steps=5, loss=loss)
    for step in range(5):
        rows = of_laws(found, step)
        assert {(r.verdict, r.facts.count("samples_used")) for r in rows.values()} == {
            ("holds", None)
        }


@pytest.mark.parametrize("missing", [float("nan"), None], ids=["is NaN", "raises"])
def test_a_quarter_in_which_nothing_counts_is_left_for_the_whole(missing: float | None) -> None:
    """Targets of the second and third quarter are masked; a step draws its quarter."""
    model, (x, y) = large()
    y[8:24] = -100

    def masked(model: nn.Module, batch: Any) -> Tensor:
        if missing is None and bool((batch[1] == -100).all()):
            raise RuntimeError("no target at all")
        return F.cross_entropy(model(batch[0]), batch[1])

    found = measured(model, (x, y), light=range(1, 9), steps=9, loss=masked)
    for step in range(1, 9):
        rows = of_laws(found, step)
        assert rows and {r.verdict for r in rows.values()} == {"holds"}, step
        assert {r.facts.count("samples_used") for r in rows.values()} == {
            None if Random(step).randrange(4) in (1, 2) else 8
        }
