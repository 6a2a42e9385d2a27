"""Finite transformations where float32 alone cannot tell a broken law from cancellation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.zeroth_order import ZerothOrder
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.weights.search.moves import Move, moved, moved_and_rounded


def left(size: float, seed: int, penalty: float = 0.0) -> Any:
    """What shifts leave before a batch norm that divides by `size`, far below them."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(16, eps=1e-12)
    model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight.mul_(size)
    batch = torch.randn(64, 8), torch.randint(0, 3, (64,))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    members = [s for s in eq.weights.discover(model, batch) if s.family == "translation"]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        bend = penalty * model[0].bias.square().sum()  # type: ignore[index, union-attr]
        return F.cross_entropy(model(batch[0]), batch[1]) + bend

    objective = Objective(
        model=model, loss_fn=loss, batch=batch, random=RandomState.seeded(0), buffers=buffers
    )
    params = {n: p.detach() for n, p in model.named_parameters()}
    draws = torch.Generator().manual_seed(0)
    elements = [torch.randn(m.dimension, generator=draws) for m in members]
    zeroth = ZerothOrder(objective, params, 1.2e-7, torch.Generator().manual_seed(1))
    return zeroth.of("translation", members, elements)


@pytest.mark.parametrize(("size", "seed"), [(3e-3, 0), (3e-3, 1), (1e-4, 3)])
def test_a_shift_that_cancels_in_a_normalisation_is_no_violation(size: float, seed: int) -> None:
    row = left(size, seed)
    assert row.value > 1e-6, "float32 leaves something"
    assert row.verdict == "holds"


def test_a_shift_that_the_loss_sees_is_a_violation() -> None:
    row = left(3e-3, 1, penalty=1e-3)
    assert row.verdict == "violated" and row.value > 100 * row.floor


def test_tensors_are_moved_in_float64_and_rounded_once() -> None:
    """Separable moves first, the others in their order; what nothing moves is itself."""
    rng = torch.Generator().manual_seed(0)
    params = {n: torch.randn(3, 3, generator=rng) for n in "abcd"}

    def mixing(one: str, other: str, by: float) -> Move:
        def apply(given: Any) -> dict[str, Tensor]:
            return {one: given[one] + by * given[other], other: given[other] * (1 + by)}

        return Move(frozenset((one, other)), separable=False, apply=apply)

    scaling = Move(frozenset("ac"), True, lambda given: {n: x / 3 for n, x in given.items()})
    moves = [mixing("a", "b", 1 / 3), scaling, mixing("b", "c", 1e-7), mixing("a", "c", 1 / 7)]
    wide = moved({n: x.double() for n, x in params.items()}, moves)
    found = moved_and_rounded(params, moves)
    assert all(found[n].equal(wide[n].float()) for n in params) and list(found) == list(params)
    assert found["d"] is params["d"]
