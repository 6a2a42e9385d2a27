"""The way to exact products is the fastest that is right, and a resumed run keeps to it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.linalg.vectors import add, norm, random_like
from eqtoolbox.probes import engine, fastest, operators, proving
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.fastest import faster
from eqtoolbox.probes.operators import operator
from eqtoolbox.probes.proving import self_test
from eqtoolbox.probes.tracking import Tracking
from tests.probes.test_engine import Around, D, First, objective
from tests.probes.test_shared import attached, cross_entropy, net, step

V = {"x": torch.ones(3)}


def right(v: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: 2 * x for n, x in v.items()}


def rounded(v: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: 2.00001 * x for n, x in v.items()}


def wrong(v: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: 2.01 * x for n, x in v.items()}


def impossible(v: dict[str, Tensor]) -> dict[str, Tensor]:
    raise NotImplementedError("no formula")


@pytest.fixture
def clock(monkeypatch):
    """Gives each function the seconds it takes, one after another; the last for ever."""

    def give(**seconds: list[float]) -> None:
        def timed(product, v):
            left = seconds[product.__name__]
            return product(v), left.pop(0) if len(left) > 1 else left[0]

        monkeypatch.setattr(fastest, "timed", timed)

    return give


@pytest.mark.parametrize(
    ("other", "seconds", "taken"),
    [
        (rounded, [0.5], True),
        (wrong, [0.5], False),
        (impossible, [0.5], False),
        (rounded, [2.0, 0.5], False),  # on a CPU nothing is loaded at the first call
        (rounded, [0.5, 0.9, 0.95], False),  # faster, but not clearly
        (rounded, [0.5, 3.0, 0.5], True),  # a noise of the machine
    ],
)
def test_the_faster_way_is_taken_if_it_is_right(clock, other, seconds, taken) -> None:
    clock(**{other.__name__: list(seconds), "right": [1.0]})
    assert faster(other, right, V, right(V), 1.0) is taken


def test_a_known_way_that_was_slow_by_chance_is_asked_again(clock) -> None:
    clock(rounded=[0.5], right=[0.4])
    assert not faster(rounded, right, V, right(V), 1.0)


@pytest.fixture
def eager(monkeypatch):
    """As on hardware where whatever is not retained is faster."""

    def timed(product, v):
        retained = getattr(product, "_retain", False)
        return product(v), 1.0 if retained else 0.1

    for module in (fastest, proving):
        monkeypatch.setattr(module, "timed", timed)


def test_forward_over_reverse_is_chosen_where_it_is_faster_and_equal_to_rounding(eager) -> None:
    torch.manual_seed(1)
    loss = objective(Around(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Dropout(0.3))))
    with loss.isolated():
        params = loss.parameters()
        test = self_test(loss, params)
        assert (test.mode, test.way) == ("exact", "forward")
        assert self_test(loss, params, timing=False).way == "retained"
        v = random_like(params, torch.Generator().manual_seed(1))
        forward = operator(loss, params, test)
        retained = operator(loss, params, self_test(loss, params, timing=False))
        assert norm(add(forward(v), retained(v), -1.0)) < 1e-5 * norm(retained(v))
        assert norm(add(forward.gradient, retained.gradient, -1.0)) == 0
    assert engine.Tested.restored(engine.Tested(test).state_dict()).test.way == "forward"


def sharpness(model, monitor, sink, optimizer, steps) -> list[tuple[str, float, float | None]]:
    """Values and errors at so many steps."""
    loss = monitor.loss(cross_entropy)
    with monitor:
        for _ in range(steps):
            step(model, loss, optimizer)
    own = (r for r in sink.records if r.name.startswith(("curvature/", "tracking/")))
    return [(r.name, r.value, r.stderr) for r in own if "self_test" not in r.name]


def test_a_run_goes_on_by_the_way_it_chose_on_another_machine_too(eager, monkeypatch) -> None:
    def begun(model: nn.Module) -> tuple[Any, ...]:
        return model, *attached(model, [Curvature(k=2, angles=True), Tracking()], schedule=1)

    expected = sharpness(*begun(net(nn.Tanh)), 5)
    model, monitor, sink, optimizer = begun(net(nn.Tanh))
    found = sharpness(model, monitor, sink, optimizer, 2)
    monkeypatch.setattr(fastest, "timed", None)  # who times again keeps to the graph
    model, again, sink, optimizer = begun(model)
    again.load_state_dict(monitor.state_dict())
    assert found + sharpness(model, again, sink, optimizer, 3) == expected
    assert "'way': 'forward'" in str(again.state_dict()["shared"])


def test_a_way_that_has_to_be_loaded_is_not_asked_for_products_that_take_less(monkeypatch) -> None:
    torch.manual_seed(1)
    loss = objective(Around(nn.Sequential(nn.Linear(D, D), nn.Tanh())))

    def asked(seconds: float) -> bool:
        ways = []
        monkeypatch.setattr(proving, "timed", lambda product, v: (product(v), seconds))
        monkeypatch.setattr(operators, "faster", lambda *given: ways.append(given) or False)
        with loss.isolated():
            assert self_test(loss, loss.parameters()).way == "retained"
        return bool(ways)

    assert not asked(fastest.LOADING / 2)
    assert asked(2 * fastest.LOADING)


def test_a_layer_without_forward_formula_keeps_the_graph(eager) -> None:
    torch.manual_seed(1)
    loss = objective(Around(First(nn.LSTM(D, D, batch_first=True))))
    with loss.isolated():
        test = self_test(loss, loss.parameters())
    assert (test.mode, test.way) == ("exact", "retained")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="way must be one of"):
        Engine(way="quickest")  # type: ignore[arg-type]


def test_running_out_of_memory_is_no_lack_of_second_derivatives(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loss = objective(Around(nn.Tanh()))
    monkeypatch.setattr("eqtoolbox.probes.proving.timed", full)
    with loss.isolated(), pytest.raises(torch.OutOfMemoryError):
        self_test(loss, loss.parameters())
