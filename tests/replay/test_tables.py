"""Tables of entries that are made when they are read, one at a time, by whichever way of a dict."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.replay.thread.tables import Asked, Exchanged, Later, settled_parameters


class Counted(Later):
    """An entry that counts how often it is made, and how many of its kind are alive."""

    def __init__(self) -> None:
        self.times = 0

    def made(self) -> Tensor:
        self.times += 1
        return torch.full((2,), float(self.times))


READS: dict[str, Any] = {
    "item": lambda d: d["w"],
    "get": lambda d: d.get("w"),
    "items": lambda d: dict(d.items())["w"],
    "values": lambda d: next(iter(d.values())),
    "dict": lambda d: dict(d)["w"],
    "copy": lambda d: d.copy()["w"],
    "spread": lambda d: {**d}["w"],
    "deep copy": lambda d: copy.deepcopy(d)["w"],
    "default": lambda d: d.setdefault("w", None),
    "pop": lambda d: d.pop("w"),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_entry_is_made_whenever_it_is_read_and_no_other_one_is(read: Any) -> None:
    entry, other = Counted(), Counted()
    entries = Asked(w=entry)
    assert entry.times == 0
    assert torch.equal(read(entries), torch.ones(2))
    assert entry.times == 1
    entries = Asked(w=Counted(), z=other)
    assert len(entries) == 2
    assert "z" in entries
    assert [*entries] == ["w", "z"]
    assert entries["w"] is not None
    assert other.times == 0


def test_a_walk_over_items_makes_one_after_the_other() -> None:
    one, two = Counted(), Counted()
    walk = iter(Asked(w=one, z=two).items())
    next(walk)
    assert (one.times, two.times) == (1, 0)


def test_a_module_reads_entries_as_it_computes_and_others_find_its_own() -> None:
    model = nn.Linear(2, 1, bias=False)
    kept, entry = model.weight, Counted()
    with Exchanged(model, {"weight": entry}).here():  # type: ignore[dict-item]
        assert float(model(torch.ones(1, 2)[..., :2]).sum()) == 2.0
        assert entry.times == 1
        assert settled_parameters(model)["weight"] is kept
        assert entry.times == 1
        assert dict(model.named_parameters())["weight"] is not kept
        assert entry.times == 2
    assert model.weight is kept


def test_a_table_without_such_entries_is_settled_as_it_is_shown() -> None:
    model, other = nn.Linear(2, 1), torch.zeros(1, 2)
    with Exchanged(model, {"weight": other}).here():
        assert settled_parameters(model)["weight"] is other
        assert [*settled_parameters(model)] == ["weight", "bias"]
