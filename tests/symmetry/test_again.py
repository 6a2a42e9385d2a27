"""What was found is saved as plain values, and only confirmed where the same runs again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.search import find
from eqtoolbox.weights.search.found import Found, KnownSymmetries
from eqtoolbox.weights.search.point import Point
from tests.conftest import blobs

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Net(nn.Module):
    """Batch normalisation, ReLU and a hidden layer; or another activation."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.a, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.b, self.c = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.activation(self.b(torch.relu(self.norm(self.a(x))))))


def search(model: nn.Module, known: Any = None) -> Found:
    twin = copy.deepcopy(model).double()

    def run(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        state = {**params, **{n: b.clone() for n, b in twin.named_buffers()}}
        y = torch.func.functional_call(twin, state, (X.double(),))
        return y, nn.functional.cross_entropy(y, Y)

    return find_symmetries(
        lambda p: run(p)[1],
        dict(model.named_parameters()),
        run=run,
        dtype=torch.float64,
        known=None if known is None else KnownSymmetries.of(known),
    )


def told(found: Found) -> list[tuple[str, str, int, str]]:
    return [(s.family, s.name, s.dimension, s.status) for s in found]


def searches() -> Any:
    """Counts the rounds of a search."""
    return mock.patch.object(find, "_shown", wraps=find._shown)


def test_what_was_saved_is_confirmed_and_not_looked_for_again() -> None:
    before = search(Net())
    saved = json.loads(json.dumps(before.state_dict(), allow_nan=False))
    with searches() as made:
        after = search(Net(), saved)
    assert made.call_count == 0
    assert told(after) == told(before)
    assert after.state_dict() == before.state_dict()
    with torch.no_grad():
        other = Net()
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    with searches() as made:
        assert told(search(other, saved)) == told(before)
    assert made.call_count == 0, "other numbers, the same structure"


@pytest.mark.parametrize("activation", [torch.tanh, nn.functional.gelu, nn.functional.leaky_relu])
def test_another_structure_is_looked_at_anew(activation: Callable[[Tensor], Tensor]) -> None:
    saved = search(Net()).state_dict()
    with searches() as made:
        found = search(Net(activation), saved)
    assert made.call_count == 1
    assert told(found) == told(search(Net(activation)))


def forged(saved: dict[str, Any], change: Callable[[list[list[Any]]], Any]) -> dict[str, Any]:
    made = copy.deepcopy(saved)
    change(made["found"])
    return made


LIES: dict[str, Callable[[list[list[Any]]], Any]] = {
    "a symmetry of another name": lambda rows: rows[0].__setitem__(1, "nothing"),
    "a larger one": lambda rows: rows[0].__setitem__(2, rows[0][2] + 1),
    "one hidden": lambda rows: rows.pop(0),
    "a residual that is none": lambda rows: rows[0].__setitem__(4, 1.0),
    "one called broken": lambda rows: rows[0].__setitem__(3, "broken"),
    "an approximate one called verified": lambda rows: next(
        r for r in rows if r[3] == "approximate"
    ).__setitem__(3, "verified"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_was_saved_is_not_believed(lie: str) -> None:
    before = search(Net())
    with searches() as made:
        found = search(Net(), forged(before.state_dict(), LIES[lie]))
    assert made.call_count == 1
    assert told(found) == told(before)


def test_a_saved_symmetry_that_the_loss_has_not_is_not_confirmed() -> None:
    """The structure is forged, too: only the numbers can say it."""
    wrong = search(Net()).state_dict() | {"structure": search(Net(torch.tanh)).structure}
    with searches() as made:
        found = search(Net(torch.tanh), wrong)
    assert made.call_count == 1
    assert told(found) == told(search(Net(torch.tanh)))


BAD: dict[str, Any] = {
    "a list": [],
    "another version": {"version": 99},
    "no rows": {"version": 1, "structure": "a", "largest": 0.1},
    "a text": {"version": 1, "structure": "a", "largest": 0.1, "found": "ab"},
    "short": {"version": 1, "structure": "a", "largest": 0.1, "found": [["a"]]},
    "a status": {
        "version": 1, "structure": "a", "largest": 0.1, "found": [["a", "b", 1, "x", 0, 0]],
    },
    "no dimension": {
        "version": 1, "structure": "a", "largest": 0.1, "found": [["a", "b", 0, "broken", 0, 0]],
    },
    "negative": {
        "version": 1, "structure": "a", "largest": 0.1, "found": [["a", "b", 1, "broken", -1, 0]],
    },
    "an epsilon": {"version": 1, "structure": "a", "largest": 7.0, "found": []},
    "a number for a text": {"version": 1, "structure": 3, "largest": 0.1, "found": []},
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_result_is_refused(kind: str) -> None:
    with pytest.raises((TypeError, ValueError), match=r"expected|must be"):
        KnownSymmetries.of(BAD[kind])


def train(run_dir: Path, steps: int, resume: bool = False) -> int:
    """Searches that a watched training makes."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    x, y = blobs()
    how = {"criterion": criterion, "probes": [Conservation()], "budget": None, "resume": resume}
    with searches() as made, eq.attach(model, optimizer, run_dir=run_dir, **how):
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return int(made.call_count)


@pytest.mark.filterwarnings("ignore:eqtoolbox. resume=True, but load_state_dict")
def test_a_run_that_goes_on_confirms_what_lies_in_its_directory(tmp_path: Path) -> None:
    assert train(tmp_path / "run", 2) == 1
    kept = json.loads((tmp_path / "run" / "symmetries.json").read_text())
    ((row, *_),) = (found["found"] for found in kept.values())
    assert row[:4] == ["rescale", "0-2", 8, "verified"]
    assert train(tmp_path / "run", 2, resume=True) == 0
    assert eq.Run(tmp_path / "run").info["finished"]


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "no JSON": lambda path: path.write_text("{"),
    "another object": lambda path: path.write_text('{"a": 3}'),
    "a list": lambda path: path.write_text("[1, 2]"),
    "bad rows": lambda path: path.write_text(
        json.dumps({k: {"version": 1, "found": 3} for k in json.loads(path.read_text())})
    ),
    "rows of a list": lambda path: path.write_text(
        json.dumps({k: [1, 2] for k in json.loads(path.read_text())})
    ),
    "deep": lambda path: path.write_text("[" * 5000 + "]" * 5000),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.filterwarnings("ignore:eqtoolbox. resume=True, but load_state_dict")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_ignored(kind: str, tmp_path: Path) -> None:
    assert train(tmp_path / "run", 2) == 1
    HOSTILE[kind](tmp_path / "run" / "symmetries.json")
    assert train(tmp_path / "run", 2, resume=True) == 1
    run = eq.Run(tmp_path / "run")
    assert run.info["finished"]
    assert list(run.series("training/loss")[0]) == [0, 1, 2, 3]


def nothing(x: Tensor) -> Tensor:
    return 0.0 * torch.relu(x)


@pytest.mark.parametrize("dead", [1, 5], ids=["one", "all"])
def test_inert_units_are_found_again(dead: int) -> None:
    net = Net(torch.relu if dead == 1 else nothing)
    with torch.no_grad():
        net.b.weight[1], net.b.bias[1] = 0.0, -90.0  # which no translation that is drawn wakes
    found = search(net)
    still = [(s.family, s.dimension) for s in found if s.status == "inert" and s.name == "b-c"]
    assert still == [("rescale", dead), ("permutation", 4)][: 1 + (dead == 5)]
    with searches() as looked:
        assert told(search(net, found.state_dict())) == told(found)
    assert not looked.called


def test_a_unit_that_lives_at_another_point_is_verified_there() -> None:
    net = Net()
    with torch.no_grad():
        net.b.bias[1] = -1.5
    (rescale,) = (s for s in search(net) if s.name == "b-c" and s.family == "rescale")
    assert (rescale.dimension, rescale.status) == (5, "verified")
    with mock.patch.object(Point, "others", return_value=()):
        made = [s for s in search(net) if s.name == "b-c" and s.family == "rescale"]
    assert [(s.dimension, s.status) for s in made] == [(4, "verified"), (1, "inert")]
