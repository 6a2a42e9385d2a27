"""Compiled products are taken where they are right and faster, and eager ones otherwise."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.linalg import product_program
from eqtoolbox.probes import compiled, engine, fastest, proving
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.sinks.memory import MemorySink
from tests.probes.test_shared import attached, cross_entropy, net, step

BY_A_PROGRAM = Engine(way="compiled")


@pytest.fixture
def quick(monkeypatch):
    """A compiler that does nothing, and a clock on which that is worth it."""

    def timed(product, v):
        return product(v), 1.0 if getattr(product, "_retain", False) else 0.1

    for module in (fastest, proving, compiled):
        monkeypatch.setattr(module, "timed", timed)
    monkeypatch.setattr(product_program, "_inductor", lambda graph, inputs: graph)


def values(sink: MemorySink) -> list[tuple[str, int, float]]:
    own = (r for r in sink.records if r.name.startswith(("curvature/", "tracking/")))
    return [(r.name, r.step, r.value) for r in own if "self_test" not in r.name]


def run(
    model: nn.Module, by: Engine, loss: Any = cross_entropy, steps: int = 3
) -> tuple[MemorySink, Any]:
    monitor, sink, optimizer = attached(
        model, [Curvature(k=2, angles=True, engine=by), Tracking(engine=by)], schedule=1
    )
    with monitor:
        for _ in range(steps):
            step(model, monitor.loss(loss), optimizer)
    return sink, monitor


def way(sink: MemorySink) -> tuple[str, str]:
    facts = next(r.facts for r in sink.records if "self_test" in r.name)
    return facts["way"], facts["reason"]


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def test_a_run_by_a_program_says_what_one_on_a_graph_says(quick) -> None:
    (eager, _), (sink, _) = run(normed(), Engine(way="retained")), run(normed(), BY_A_PROGRAM)
    assert way(sink)[0] == "compiled"
    assert way(eager)[0] == "retained"
    assert len(values(sink)) == len(values(eager)) > 10
    for (name, at, value), (also, then, known) in zip(values(sink), values(eager), strict=True):
        assert (name, at) == (also, then)
        assert value == pytest.approx(known, rel=1e-3, abs=1e-5)


def test_its_products_are_made_by_the_program(quick, monkeypatch) -> None:
    """Negative control: a program that is right where it is compared and nowhere else."""
    bind = compiled.bind

    def wrong(made: Any, *args: Any) -> None:
        bind(made, *args)
        right = made.by
        made.by = lambda v: {n: 2 * x for n, x in right(v).items()}

    sink, _ = run(net(), BY_A_PROGRAM)
    monkeypatch.setattr(engine, "bind", wrong)
    twice, _ = run(net(), BY_A_PROGRAM)
    top = [r[2] for r in values(sink) if r[0].endswith("eigenvalue/1")]
    doubled = [r[2] for r in values(twice) if r[0].endswith("eigenvalue/1")]
    assert len(doubled) == 3
    assert doubled == pytest.approx([2 * x for x in top], rel=1e-3)


def test_a_compiler_that_cannot_leaves_the_graph_and_the_reason(quick, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setattr(product_program, "_inductor", broken)
    sink, _ = run(net(), BY_A_PROGRAM)
    assert way(sink)[0] == "retained"
    assert "not compiled: no working C++ compiler" in way(sink)[1]
    assert "more" not in way(sink)[1]


def test_a_program_that_is_no_faster_is_not_taken(quick, monkeypatch) -> None:
    monkeypatch.setattr(fastest, "timed", lambda product, v: (product(v), 1.0))
    sink, _ = run(net(), BY_A_PROGRAM)
    assert way(sink)[0] == "retained"
    assert "no faster" in way(sink)[1]


def test_dropout_is_not_compiled(quick) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3))
    sink, _ = run(model, BY_A_PROGRAM)
    assert way(sink)[0] == "retained"
    assert "draws random numbers" in way(sink)[1]


def test_a_step_of_another_branch_has_eager_products(quick, caplog) -> None:
    begun = float(next(net().parameters()).detach().sum())

    def doubled_later(model: nn.Module, batch: Any) -> Tensor:
        moved = float(next(model.parameters()).detach().sum()) != begun
        return (2.0 if moved else 1.0) * cross_entropy(model, batch)

    eager, _ = run(net(), Engine(way="retained"), doubled_later)
    with caplog.at_level(logging.WARNING):
        sink, _ = run(net(), BY_A_PROGRAM, doubled_later)
    assert "products of this step are eager: compiled ones are" in caplog.text
    for (_, _, value), (_, _, known) in zip(values(sink), values(eager), strict=True):
        assert value == pytest.approx(known, rel=1e-3, abs=1e-5)


def test_a_resumed_run_goes_on_by_its_way(quick) -> None:
    model = net()
    _, monitor = run(model, BY_A_PROGRAM)
    state = monitor.state_dict()
    again, sink, optimizer = attached(model, [Curvature(k=2, engine=BY_A_PROGRAM)], schedule=1)
    again.load_state_dict(state)
    with again:
        step(model, again.loss(cross_entropy), optimizer)
    assert "'way': 'compiled'" in str(again.state_dict()["shared"])
    assert any(r.name.endswith("eigenvalue/1") and r.status == "ok" for r in sink.records)


def test_compiled_products_keep_a_graph() -> None:
    with pytest.raises(ValueError, match='needs memory="fast"'):
        replace(BY_A_PROGRAM, memory="low")
