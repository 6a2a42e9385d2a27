"""Channels exchanged through a normalisation by running statistics, which move along.

Truth by brute force: of every tensor any two indices of any axis exchanged, in all combinations.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.replay.statistics import running
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.families.discrete import Permutation
from eqtoolbox.weights.search import units
from eqtoolbox.weights.search.found import Found

State = dict[str, Tensor]
Exchange = tuple[str, int, int, int]  # tensor, axis, two indices


class Frozen(nn.Module):
    """A normalisation by hand all of whose numbers are buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


def around(norm: nn.Module, width: int = 3) -> nn.Module:
    torch.manual_seed(1)
    first, last = nn.Linear(2, width, bias=False), nn.Linear(width, 2, bias=False)
    return used(nn.Sequential(first, norm, nn.GELU(), last))


class Joined(nn.Module):
    """A normalised stream and what is added to it: all have one order of channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.w, self.h = (nn.Linear(m, n, bias=False) for m, n in ((2, 3), (3, 3), (3, 2)))
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        return self.h(z + F.gelu(self.norm(self.w(z))))


def used(model: nn.Module) -> nn.Module:
    """In general position, with statistics that are no longer zero and one; evaluated."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    for _ in range(10):
        model(2 * torch.randn(30, 2) + 1)
    return model.double().eval()


BATCH = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 2
Made = tuple[Callable[[], nn.Module], int]


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


MODELS: dict[str, Made] = {
    "plain": (lambda: around(nn.BatchNorm1d(3, affine=False)), 2),
    "affine": (lambda: around(nn.BatchNorm1d(2), 2), 1),
    "frozen": (lambda: around(Frozen(2), 2), 1),
    "stream": (lambda: used(Joined()), 2),
    "told apart": (lambda: around(nn.Sequential(nn.BatchNorm1d(2), Summed()), 2), 0),
}


def loss_of(model: nn.Module, state: State) -> Tensor:
    return F.cross_entropy(functional_call(model, state, (BATCH[0].double(),)), BATCH[1])


def state_of(model: nn.Module) -> State:
    own = {n: p.detach() for n, p in model.named_parameters()}
    return {**own, **running(dict(model.named_buffers()))}


def exchanges(model: nn.Module) -> set[frozenset[Exchange]]:
    """By brute force: all involutions, at most two indices of an axis, that keep the loss."""
    state, value = state_of(model), loss_of(model, state_of(model))
    axes = [(n, a, size) for n, p in state.items() for a, size in enumerate(p.shape)]
    options = [
        [None, *((n, a, i, j) for i, j in itertools.combinations(range(size), 2))]
        for n, a, size in axes
    ]
    found = set()
    for chosen in itertools.product(*options):
        moved = dict(state)
        for n, a, i, j in filter(None, chosen):
            order = torch.arange(moved[n].shape[a])
            order[[i, j]] = order[[j, i]]
            moved[n] = moved[n].index_select(a, order)
        if (loss_of(model, moved) - value).abs() < 1e-12:
            found.add(frozenset(filter(None, chosen)))
    return found - {frozenset()}


def elements(found: Found) -> set[frozenset[Exchange]]:
    """All transpositions of what the search found."""
    made = set()
    for s in permutations(found):
        for first, second in itertools.combinations(range(s.dimension + 1), 2):
            slots = (*s.slots, *s.statistics)
            places = [(o.name, o.axis, *sorted(o.positions[[first, second], 0].tolist()))
                      for o in slots]  # fmt: skip
            made.add(frozenset(places))
    return made


def permutations(found: Found) -> list[Permutation]:
    return [s for s in found if isinstance(s, Permutation) and s.status == "verified"]


@pytest.mark.parametrize("name", MODELS)
def test_exchanges_of_channels_are_those_of_brute_force(name: str) -> None:
    make, dimension = MODELS[name]
    found = discover(make(), BATCH)
    assert elements(found) == exchanges(make())
    assert sum(s.dimension for s in permutations(found)) == dimension


@pytest.mark.parametrize("name", [n for n, (_, d) in MODELS.items() if d])
def test_the_loss_stays_if_statistics_move_along_and_only_then(name: str) -> None:
    model = MODELS[name][0]()
    (found,) = permutations(discover(model, BATCH))
    state, value = state_of(model), loss_of(model, state_of(model))
    with_all = {**state, **found.element(state, 0)}
    alone = {n: p for n, p in state.items() if n not in found.buffers}
    without = {**state, **found.element(alone, 0)}
    assert found.buffers and not set(found.buffers) & set(found.names)
    assert (loss_of(model, with_all) - value).abs() < 1e-13
    assert (loss_of(model, without) - value).abs() > 1e-6
    rng = torch.Generator().manual_seed(3)
    assert (loss_of(model, {**state, **found.draw(rng)(state)}) - value).abs() < 1e-13


def test_in_training_statistics_of_the_batch_are_read_and_no_buffer_moves() -> None:
    (found,) = permutations(discover(MODELS["plain"][0]().train(), BATCH))
    assert found.dimension == 2 and found.buffers == ()


def test_exchanges_that_leave_statistics_behind_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The must-fail twin: without the buffers verification breaks what is proposed."""
    honest = units.propose_permutations
    for left_out in ("mean", "var"):
        monkeypatch.setattr(
            "eqtoolbox.weights.search.discrete.propose_permutations",
            lambda members, gone=left_out: (
                replace(s, statistics=tuple(o for o in s.statistics if gone not in o.name))
                for s in honest(members)
            ),
        )
        assert not permutations(discover(MODELS["plain"][0](), BATCH))


def measured(model: nn.Module, pieces: int = 1) -> dict[str, tuple[float, str | None]]:
    """What the probe says of a model that trains with its statistics fixed."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.01), MemorySink()
    options = {"schedule": 1, "budget": None, "sinks": [sink], "on_error": "raise"}
    with eq.attach(model, optimizer, probes=[Discrete(near=1.4)], **options) as monitor:
        loss = monitor.loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        for k in range(pieces):
            loss(model, (BATCH[0].double()[k::pieces], BATCH[1][k::pieces])).backward()
        optimizer.step()
    return {r.name.removeprefix("discrete/"): (r.value, r.verdict) for r in sink.records}


@pytest.mark.parametrize("pieces", [1, 2])
def test_laws_of_exchanges_hold_where_statistics_move_along(pieces: int) -> None:
    found = measured(MODELS["affine"][0](), pieces)
    for name in ("first_order/permutation", "second_order/permutation", "block/1"):
        assert found[name][1] == "holds" and found[name][0] < 1e-12, (name, found[name])


def test_laws_fail_where_statistics_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The must-fail twin: the same element without the buffers is no symmetry."""
    honest = Snapshot.at
    monkeypatch.setattr(Snapshot, "at", lambda self, params, _: honest(self, params, dict))
    found = measured(MODELS["affine"][0]())
    for name in ("first_order/permutation", "second_order/permutation", "block/1"):
        assert found[name][1] == "violated", (name, found[name])
