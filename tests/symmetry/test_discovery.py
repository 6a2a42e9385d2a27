"""Discovery finds the true group on networks of many kinds, and nothing on their broken twins."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.search import problem
from tests.symmetry.architectures import Rotary, conv
from tests.symmetry.expected import (
    EXPECTED,
    IMAGES,
    TOKENS,
    TWINS,
    VECTORS,
    L,
    S,
    counts,
    found_in,
    inputs,
)


@pytest.mark.parametrize("dear", [2**18, 0], ids=["all samples", "few samples"])
@pytest.mark.parametrize("kind", {**EXPECTED, **TWINS})
def test_the_group_has_the_expected_dimensions(
    kind: str, dear: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at on all samples, and on few where that suffices."""
    monkeypatch.setattr(problem, "_DEAR", dear)
    make, shape, expected = {**EXPECTED, **TWINS}[kind]
    found = found_in(make, shape)
    assert counts(found) == expected
    exact = [s for s in found if s.status == "verified"]
    assert all(s.residual <= 1e-10 for s in exact)
    assert {s.family for s in found if s.status == "approximate"} <= {"scale", "gain_rescale"}


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_has_less_than_the_network_it_was(kind: str) -> None:
    whole, group = EXPECTED[kind.partition(":")[0]][2], TWINS[kind][2]
    assert any(group.get(family, 0) < dimension for family, dimension in whole.items())


class Twin(nn.Module):
    """A ReLU pair spoilt in one place."""

    def __init__(self, spoil: Callable[[Tensor], Tensor], extra: bool = False) -> None:
        super().__init__()
        self.a, self.c, self.spoil, self.extra = L(6, 5), L(5, 5), spoil, extra

    def forward(self, x: Tensor) -> Tensor:
        h = self.spoil(self.a(x))
        return self.c(h) + torch.tanh(h) if self.extra else self.c(h)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Twin(nn.functional.gelu),
        lambda: Twin(lambda h: h.clamp(0, 0.5)),
        lambda: Twin(lambda h: torch.relu(h) + 1),
        lambda: Twin(lambda h: torch.relu(h), extra=True),
        lambda: Twin(lambda h: torch.relu(h) * torch.sigmoid(h)),
        lambda: Twin(lambda h: torch.relu(h - 0.1 * h.detach().exp())),
        lambda: Twin(lambda h: torch.special.i0(h)),
    ],
    ids=["gelu", "clamp", "added constant", "extra consumer", "self gate", "exp", "no rule"],
)
def test_a_broken_twin_has_no_continuous_symmetry_of_its_units(
    make: Callable[[], nn.Module],
) -> None:
    assert set(counts(found_in(make, VECTORS))) <= {"translation", "permutation"}
    assert counts(found_in(lambda: Twin(torch.relu), VECTORS))["rescale"] == 5


def test_rotary_positions_reduce_the_general_linear_group_of_query_and_key() -> None:
    plain = counts(found_in(lambda: Rotary(rotary=False), TOKENS))
    turned = counts(found_in(Rotary, TOKENS))
    assert plain["general_linear"] == 64 and "rope" not in plain
    assert turned["general_linear"] == 32 and turned["rope"] == 8


def test_discovery_leaves_the_model_and_the_random_stream_alone() -> None:
    model = S(conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), L(144, 3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    eq.weights.discover(model, (inputs(IMAGES), torch.arange(6) % 3))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_lazy_or_no_parameters_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="run the model once"):
        eq.weights.discover(nn.LazyLinear(3), (torch.ones(2, 4), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="no trainable parameters"):
        eq.weights.discover(nn.ReLU(), (torch.ones(1, 4), torch.tensor([0])))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3), (0,)])
def test_parameters_without_entries_hold_no_search_back(shape: tuple[int, ...]) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            self.empty = nn.Parameter(torch.zeros(shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers(x) + self.empty.sum()
            return out

    torch.manual_seed(0)
    batch = torch.randn(16, 4), torch.randint(3, (16,))
    loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    found = {
        s.family
        for s in eq.weights.discover(Beside(), batch, loss_fn=loss)
        if s.status == "verified"
    }
    assert {"rescale", "permutation"} <= found
