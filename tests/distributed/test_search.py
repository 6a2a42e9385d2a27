"""Symmetries found from shapes and shards are those that one process finds of the whole model."""

import copy
import pickle
import threading
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.found import Found
from eqtoolbox.weights.search.parted import Shown, confirmed, find_parted, general, shown
from eqtoolbox.weights.search.point import Point
from eqtoolbox.world.shards import Shards
from tests.distributed.networks import cross_entropy, language, pictures
from tests.distributed.simulated import Simulated, first_axis, held, layouts, mixed_axes

Params = dict[str, Tensor]
NETWORKS = {"language": language, "pictures": pictures}
CUTS = {"first": first_axis, "mixed": mixed_axes}


class Trained:
    """A network with its batch, as a function that ranks in threads may call at once."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Tensor, Tensor]]) -> None:
        self.model, inputs, self.targets = make()
        self.model.double()
        self.inputs = inputs.double() if inputs.is_floating_point() else inputs
        self.params = {n: p.detach() for n, p in self.model.named_parameters()}
        self.point: Params = dict(Point(self.params).items())  # in general position
        self._own = threading.local()

    def run(self, params: Params) -> tuple[Tensor, Tensor]:
        if not hasattr(self._own, "model"):
            self._own.model = copy.deepcopy(self.model)
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        output = functional_call(self._own.model, {**params, **buffers}, (self.inputs,))
        return output, cross_entropy(output, self.targets)

    def gradient(self, at: Params | None = None) -> Params:
        point = self.point if at is None else at
        leaves = {n: p.clone().requires_grad_() for n, p in point.items()}
        found = torch.autograd.grad(
            self.run(leaves)[1], list(leaves.values()), materialize_grads=True
        )
        return dict(zip(leaves, found, strict=True))


@cache
def trained(name: str) -> Trained:
    return Trained(NETWORKS[name])


@cache
def seen(name: str) -> Shown:
    """What the first process is shown, as it arrives at the others."""
    of = trained(name)
    shapes = {n: torch.empty_like(p, device="meta") for n, p in of.params.items()}
    sent: Shown = pickle.loads(pickle.dumps(shown(of.run, shapes)))
    return sent


def told(found: list[ParameterSymmetry]) -> list[tuple[str, str, int, str]]:
    """What is known of all that conserves something, and of shifts."""
    usable = [s for s in found if isinstance(s, ContinuousSymmetry) and s.status != "broken"]
    return sorted(
        (s.family, s.name, s.dimension, s.status) for s in usable if s.family != "head_rotation"
    )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_shards_show_is_what_the_whole_model_shows(name: str, cut: str) -> None:
    """Family by family, unit by unit, with its status; and the same on every rank."""
    of, gradient = trained(name), trained(name).gradient()
    whole = find_symmetries(
        lambda p: of.run(p)[1], of.params, run=of.run, dtype=torch.float64, model=of.model
    )
    expected = told(whole)
    assert len({family for family, *_ in expected}) >= 5
    for ranks in (1, 2, 3):
        pieces = layouts(of.point, ranks, CUTS[cut])

        def part(shards: Shards) -> Found:
            own = [held(x, shards.layout) for x in (of.point, gradient)]
            return confirmed(
                seen(name),
                *own,
                shards,
                loss=lambda p: of.run(shards.whole(p))[1],
                outputs=lambda p: of.run(shards.whole(p))[0],
                everywhere=lambda x: x,
            )

        seen(name)  # once, before the ranks begin
        for found in Simulated(ranks=ranks).run(part, pieces):
            assert told(found) == expected, ranks
            assert found.notes[0].startswith("verified from shards: ")


@pytest.mark.parametrize("name", NETWORKS)
def test_first_order_alone_finds_what_the_trace_shows(name: str) -> None:
    """Without a loss nothing is moved: no shifts, and the note says so."""
    of, pieces = trained(name), layouts(trained(name).point, 2)

    def part(shards: Shards) -> Found:
        own = held(of.params, shards.layout)
        point = general(own, shards)
        slope = held(of.gradient(shards.whole(point)), shards.layout)
        return find_parted(of.run, point, slope, shards, of_first=lambda make: seen(name))

    seen(name)
    found = Simulated(ranks=2).run(part, pieces)[0]
    assert {s.status for s in found if isinstance(s, ContinuousSymmetry)} <= {
        "verified",
        "approximate",
    }
    assert "translation" not in {s.family for s in found}
    assert "and 0 of them at a finite transformation" in found.notes[0]


def test_what_is_no_symmetry_is_broken_from_shards_too() -> None:
    """Twin: the gradient of another loss, which decays every weight, leaves no rescaling."""
    of, pieces = trained("language"), layouts(trained("language").point, 3)
    gradient = {n: g + of.point[n] for n, g in of.gradient().items()}

    def part(shards: Shards) -> Found:
        own = [held(x, shards.layout) for x in (of.point, gradient)]
        return confirmed(seen("language"), *own, shards)

    seen("language")
    found = Simulated(ranks=3).run(part, pieces)[1]
    assert {s.status for s in found if isinstance(s, ContinuousSymmetry)} == {"broken"}
