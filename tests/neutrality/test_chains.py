"""State is kept, or refused by name, however many things of whatever kinds hold each other."""

import pytest

from eqtoolbox.replay.reach import slots
from tests.neutrality.chains import difference


@pytest.mark.parametrize("seeds", [range(k, k + 10) for k in range(0, 60, 10)], ids=str)
def test_a_state_is_kept_or_refused_through_any_chain_of_holders(seeds: range) -> None:
    assert [found for found in map(difference, seeds) if found] == []


def test_a_chain_that_is_not_put_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots.Slot, "restore", lambda *_: False)
    found = [*map(difference, range(20))]
    assert sum("another training" in one for one in found) >= 10
