"""Compensations are found where two gradients agree, without comparing all with all."""

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.search.compensations import alike, propose_compensations


def slowly(rows: Tensor) -> set[tuple[int, int]]:
    """By comparing every row with those before it, column by column."""
    found = set()
    for column in rows.T.tolist():
        for k, own in enumerate(column):
            before = [j for j in range(k) if column[j] == own]
            if before and own:
                found.add((before[0], k))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_agree_somewhere_are_those_of_a_comparison_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-2, 3, (7, 5), generator=generator).double()
    assert set(alike(rows)) == slowly(rows)


def sums(difference: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return {"a": drawn[0], "b": drawn[1], "c": drawn[0] + difference, "d": drawn[0] + difference}


def test_each_is_paired_with_the_first_that_has_its_gradient() -> None:
    shapes = dict.fromkeys("abcd", (6,))
    found = [(c.first, c.second, c.dimension) for c in propose_compensations(sums(), shapes, set())]
    assert found == [("a", "c", 6), ("a", "d", 6)]
    other = [(c.first, c.second) for c in propose_compensations(sums(1e-6), shapes, set())]
    assert other == [("c", "d")]


def test_of_two_matrices_single_equal_sums_are_accidents() -> None:
    given = sums()
    given["c"] = torch.cat([given["a"][:1], given["b"][1:] + 1])
    vectors = propose_compensations(given, dict.fromkeys("abcd", (6,)), set())
    assert ("a", "c", 1) in [(c.first, c.second, c.dimension) for c in vectors]
    matrices = propose_compensations(given, dict.fromkeys("abcd", (3, 6)), set())
    assert "c" not in [c.second for c in matrices]
