"""The page of evidence says what the benchmarks measured, and their experiments run."""

import doctest
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of benchmarks/, which is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [n for n in sys.modules if (BENCHMARKS / f"{n}.py").exists()]:
        monkeypatch.delitem(sys.modules, name)


def test_the_page_has_the_tables_and_pictures_that_were_measured(load: Load) -> None:
    evidence = load("evidence")
    page = evidence.PAGE.read_text()
    hint = "write it anew: python benchmarks/evidence.py"
    assert sorted(name for _, name, _ in evidence.MARKED.findall(page)) == sorted(evidence.TABLES)
    assert page == evidence.filled(page), hint
    for name, drawn in evidence.PICTURES.items():
        assert f"pictures/{name}" in page
        assert (evidence.PAGE.parent / "pictures" / name).read_text() == drawn(), hint


def test_a_table_that_says_something_else_is_caught(load: Load) -> None:
    evidence = load("evidence")
    page = evidence.PAGE.read_text()
    changed = page.replace("| plain |", "| plain | 0", 1)
    assert changed != page == evidence.filled(changed)


def test_numbers_are_told_as_their_examples_say(load: Load) -> None:
    failed, tried = doctest.testmod(load("evidence_cells"))
    assert tried and not failed


def test_sharpness_stays_below_the_edge_at_a_small_rate(load: Load) -> None:
    curvature = load("reproduce_curvature")
    found = curvature.edge(0, steps=40, rates=(0.05,))
    assert 0.1 < found["sharpness × η/2, last third, η = 0.05"] < 1
    assert found["gradient in the top 10, at the start"] > 0.8
    assert found["gradient in the top 10, last third, η = 0.05"] < 0.1


def test_full_batches_keep_a_charge_that_mini_batches_lose(load: Load) -> None:
    laws = load("reproduce_laws")
    found = laws.balance(0, steps=300, sizes=(512, 4, 1))
    assert found["charge kept, batch 512"] > 0.99
    assert found["charge kept, batch 4"] > found["charge kept, batch 1"]
    assert laws.balances({k: [v] for k, v in found.items()}) in ("reproduced", "not reproduced")


def test_closed_forms_say_where_charges_are(load: Load) -> None:
    found = load("reproduce_laws").closed_forms(0, steps=8)
    for rule in load("reproduce_laws").RULES:
        assert found[f"off the closed form, {rule}"] < 0.01 * found[f"drift, {rule}"] + 1e-4


def test_verdicts_follow_from_figures(load: Load) -> None:
    """Each rule says something else of figures that are."""
    edges, laws, steps = map(load, ("reproduce_curvature", "reproduce_laws", "reproduce_steps"))
    keys = [f"sharpness × η/2, last third, η = {lr}" for lr in (0.2, 0.1, 0.05)]
    told = lambda judge, values: judge({k: [v] for k, v in values.items()})
    sits = dict(zip(keys, (1.05, 1.1, 0.5), strict=True))
    assert told(edges.at_the_edge, sits) == "reproduced"
    assert told(edges.at_the_edge, {**sits, keys[0]: 1.5}) == "not reproduced"
    assert told(edges.sharpens, {"growth": 2.0, "rises": 0.99}) == "reproduced"
    assert told(edges.sharpens, {"growth": 0.9, "rises": 0.99}) == "not reproduced"
    shares = {"start": 0.9, "0.2": 0.99, "0.1": 0.9, "below": 0.9, "mini": 0.8}
    assert told(edges.aligns, shares) == "reproduced"
    assert told(edges.aligns, {**shares, "below": 0.0}) == "reproduced at the edge; not below it"
    assert told(edges.aligns, {**shares, "0.2": 0.1}) == "not reproduced"
    kept = {"charge kept, batch 512": 0.99, "slope": -1.02}
    assert told(laws.balances, kept) == "reproduced"
    assert told(laws.balances, {**kept, "slope": -0.5}) == "not reproduced"
    assert told(laws.predicts, {"off the closed form, SGD": 0.001}) == "reproduced"
    assert told(laws.predicts, {"off the closed form, SGD": 0.1}) == "not reproduced"
    ten = {"generators found": 10.0, "before": 0.0}
    assert told(laws.recovers, ten) == "reproduced"
    assert told(laws.recovers, {**ten, "before": 10.0}) == "not reproduced"
    reached = {}
    for name in steps.SETTINGS:
        reached[f"{name}: steps to loss 0.3, best constant rate"] = 100
        reached[f"{name}: steps to loss 0.3, CDAT"] = math.inf
    assert told(steps.wins, reached) == "fewer steps: nowhere. Fewer gradients: nowhere"
    reached["tanh, full batch: steps to loss 0.3, CDAT"] = 30
    assert told(steps.wins, reached).count("tanh, full batch") == 2


def test_verdicts_about_acts_follow_from_figures(load: Load) -> None:
    acts = load("reproduce_acts")
    kinds = ("unbalanced channels, int8", "as trained, int8")
    lost = dict(zip(("float", *kinds), ([0.96], [0.8], [0.96]), strict=True))
    back = lost | {f"{kind}, balanced": [0.96] for kind in kinds}
    assert acts.restores(back) == "reproduced; an ordinary network gains nothing"
    assert acts.restores({**back, f"{kinds[1]}, balanced": [0.97]}).endswith("gains, too")
    assert acts.restores({**back, f"{kinds[0]}, balanced": [0.9]}) == "not reproduced"
    barriers = {"32": [1.0], "32, aligned": [0.1], "512": [0.3], "512, aligned": [0.01]}
    assert acts.lowers(barriers) == "reproduced"
    assert acts.lowers({**barriers, "512, aligned": [0.2]}) == "not reproduced"
    ways = ("none", "one at the start", "five")
    moved = {f"gradients, {way}": [100.0] for way in ways} | {f"loss, {way}": [1.0] for way in ways}
    assert acts.gains(moved).startswith("not reproduced where the rate is tuned; does not")
    assert acts.gains({**moved, "loss, one at the start": [0.5]}).endswith("helps at a small rate")
    assert acts.gains({**moved, "gradients, one at the start": [50.0]}) == "reproduced"
    often = {f"loss, balanced {when}": [0.1, 0.2] for when in ("never", "every step")}
    often |= {f"test accuracy, balanced {when}": [0.9, 0.9] for when in ("never", "every step")}
    assert "lower loss in 0, more accuracy in 0 of 2" in acts.trains(often)
    better = {"loss, balanced every step": [0.05, 0.1]}
    better |= {"test accuracy, balanced every step": [0.95, 0.95]}
    assert acts.trains(often | better) == "reproduced"


def test_balance_brings_quantised_networks_back(load: Load) -> None:
    found = load("reproduce_acts").equalised(0, steps=100)
    lost, back = (found[f"unbalanced channels, int4{end}"] for end in ("", ", balanced"))
    assert lost < 0.5 < found["float"] - 0.1 < back


def test_a_teleport_makes_the_gradient_larger_and_keeps_the_loss(load: Load) -> None:
    acts = load("reproduce_acts")
    images, labels = acts.digits()[0]
    model = acts.perceptron((64, 32, 32, 10), seed=0)

    def slope() -> tuple[float, float]:
        loss = acts.F.cross_entropy(model(images), labels)
        loss.backward()
        size = sum(float(p.grad.square().sum()) for p in model.parameters())
        model.zero_grad()
        return float(loss.detach()), size

    loss, size = slope()
    acts.teleported(model, (images, labels), acts.rescalings(model))
    moved, larger = slope()
    assert moved == pytest.approx(loss, rel=1e-5)
    assert larger > 1.5 * size


def test_rank_correlations_are_those_of_scipy(load: Load) -> None:
    link = load("link")
    rng = np.random.default_rng(0)
    x = rng.normal(size=20).round(1)
    y = x + rng.normal(size=20).round(1)
    assert link.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    found = link.correlation(list(x), list(y))
    low, high = found["interval"]
    assert low < found["rho"] < high
    assert link.correlation(list(x[:9]), list(y[:9])) is None, "too few to tell"
    assert math.isnan(link.spearman(x, np.ones(20)))


def test_what_is_built_in_is_exact_and_what_is_not_is_not(load: Load) -> None:
    link = load("link")
    for level in (*link.LEVELS, *link.BUILT):
        found = link.run(link.Way(level=level, symmetric=True, seed=0), steps=5)
        assert (found["equivariance error"] == 0) == (level in link.BUILT), level
