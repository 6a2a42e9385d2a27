"""States: every field has one owner, comes back from a checkpoint, and what was saved stays."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtoolbox.attach.entry import KINDS
from eqtoolbox.probes.forecast import Closed, Forecast
from eqtoolbox.probes.ledger import CAUSES, Ledger
from eqtoolbox.watch.state import State
from eqtoolbox.weights.charges.flow import ClosedForm


@dataclass(kw_only=True, eq=False)
class Inner(State):
    counts: dict[str, list[int]] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Outer(State):
    steps: int = 0
    where: Tensor | None = None
    inner: Inner = field(default_factory=Inner)


def test_a_state_comes_back_with_the_states_inside() -> None:
    made = Outer(steps=3, where=torch.ones(2), inner=Inner(counts={"a": [1, 2]}))
    again = Outer()
    again.load_state_dict(made.state_dict())
    assert (again.steps, again.where, again.inner.counts) == (3, made.where, {"a": [1, 2]})


def test_what_was_saved_stays_while_the_run_goes_on() -> None:
    made = Outer(inner=Inner(counts={"a": [1]}))
    saved = made.state_dict()
    made.inner.counts["a"].append(2)
    assert saved["counts"] == {"a": [1]}
    made.load_state_dict(saved)
    made.inner.counts["b"] = []
    assert saved["counts"] == {"a": [1]}


def test_what_a_checkpoint_does_not_have_stays_and_what_it_has_more_is_left() -> None:
    made = Outer(steps=3)
    made.load_state_dict({"where": None, "of a later version": 5})
    assert made.steps == 3
    with pytest.raises(TypeError, match="saved must be a dict, got 5"):
        made.load_state_dict(5)  # type: ignore[arg-type]


# -- the states of our probes ---------------------------------------------------------------------

STATES = sorted({kind.state for kind in KINDS if kind.state is not None}, key=lambda s: s.__name__)


def inside(state: State) -> Iterator[State]:
    yield state
    for f in fields(state):
        value = getattr(state, f.name)
        if isinstance(value, State):
            yield from inside(value)


def shared_keys(state: State) -> list[str]:
    """Keys of a checkpoint that two states inside write."""
    keys = [key for part in inside(state) for key in own_keys(part)]
    return sorted({key for key in keys if keys.count(key) > 1})


def own_keys(state: State) -> set[str]:
    others = {key for part in inside(state) if part is not state for key in part.state_dict()}
    own = {f.name for f in fields(state) if not isinstance(getattr(state, f.name), State)}
    return own if type(state).state_dict is State.state_dict else set(state.state_dict()) - others


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_each_key_of_a_checkpoint_has_one_owner(kind: type[State]) -> None:
    made = kind()
    assert shared_keys(made) == []
    assert set(made.state_dict()) == {key for part in inside(made) for key in own_keys(part)}


def test_a_key_with_two_owners_is_caught() -> None:
    @dataclass(kw_only=True, eq=False)
    class Rival(State):
        counts: int = 0
        inner: Inner = field(default_factory=Inner)

    assert shared_keys(Rival()) == ["counts"]


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_a_state_that_nothing_was_put_into_comes_back(kind: type[State]) -> None:
    saved = kind().state_dict()
    again = kind()
    again.load_state_dict(saved)
    assert repr(again.state_dict()) == repr(saved)


def test_a_forecast_comes_back_under_the_names_of_earlier_versions() -> None:
    rows, charge = torch.ones(4, 2), torch.tensor([1.0, 2.0])
    made = Forecast(
        at=4, since=1, start=charge, course=ClosedForm(charge=2 * charge, slope=-charge),
        closed=Closed(rates=[(0.1, 0.0, 0.9, False, False)], rows=rows, why={"a": "no"}),
        told=["a"],
    )  # fmt: skip
    saved = made.state_dict()
    assert saved["forecast"].keys() == {"at", "since", "start", "charge", "slope"}
    assert saved["forecast_rates"].keys() == {"rates", "rows", "why"}
    again = Forecast()
    again.load_state_dict(saved)
    assert again.course == made.course and again.closed == made.closed
    assert (again.at, again.since, again.start, again.told) == (4, 1, charge, ["a"])


def test_a_ledger_takes_fewer_causes_and_nothing_of_a_time_before_sketches() -> None:
    saved: dict[str, Any] = Ledger(causes=torch.ones(3, 2), start=torch.ones(2)).state_dict()
    ledger = Ledger()
    ledger.load_state_dict(saved)
    assert ledger.causes.sum(1).tolist() == [2.0, 2.0, 2.0, 0.0, 0.0]
    assert len(ledger.causes) == len(CAUSES)
    del saved["sketched"]
    older = Ledger()
    older.load_state_dict(saved)
    assert len(older.start) == 0, "begun anew"
