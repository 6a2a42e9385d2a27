"""Laws of orthonormal rows: whatever the blocks they are kept in, the numbers are the same."""

import pytest
import torch

from eqtoolbox.linalg import basis
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.vectors import Space

N, ROWS = 300, 9


def filled(monkeypatch, block: int) -> tuple[Basis, torch.Tensor]:
    """Rows of a random orthonormal matrix, two tensors each, in blocks of so many entries."""
    monkeypatch.setattr(basis, "BLOCK", block)
    rng = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(N, ROWS, generator=rng, dtype=torch.float64))
    like = {"a": torch.zeros(200).double(), "b": torch.zeros(10, 10).double()}
    rows = Basis(Space.of(like), ROWS + 3)
    for q in Q.T:
        rows.append([q])
    return rows, Q.T


def memory(rows: Basis) -> int:
    """Rows that memory is taken for."""
    return len(rows._rows[0].rows())


@pytest.mark.parametrize("block", [1, 2 * N, 5 * N, 1 << 20])
def test_blocks_change_no_number(monkeypatch, block: int) -> None:
    rows, Q = filled(monkeypatch, block)
    x = torch.arange(N).double()
    torch.testing.assert_close(rows.coefficients([x]), Q @ x)
    torch.testing.assert_close(rows.coefficients([x], first=4), (Q @ x)[4:])
    assert rows.coefficients([x], first=ROWS).shape == (0,)
    w = x.clone()
    rows.orthogonalise([w])
    torch.testing.assert_close(w, x - Q.T @ (Q @ x))
    mix, _ = torch.linalg.qr(torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator()))
    combined = rows.combine(mix)
    rows.rotate(mix)
    assert len(rows) == 4
    for i, v in enumerate(combined):
        expected = mix[:, i] @ Q
        torch.testing.assert_close(torch.cat([v["a"], v["b"].reshape(-1)]), expected)
        torch.testing.assert_close(rows.vector(i), v)


def test_memory_follows_the_rows(monkeypatch) -> None:
    rows, _ = filled(monkeypatch, 1)
    assert memory(rows) == ROWS
    rows.rotate(torch.eye(ROWS, 2, dtype=torch.float64))
    assert memory(rows) == 2
    whole, _ = filled(monkeypatch, 1 << 20)  # of a small model all at once
    assert memory(whole) == ROWS + 3


@pytest.mark.parametrize("block", [1, 4 * N, 1 << 20])
@pytest.mark.parametrize(("i", "to"), [(3, 3), (3, 0), (ROWS - 1, 2)])
def test_a_row_that_is_moved_leaves_the_others_in_order(
    monkeypatch, block: int, i: int, to: int
) -> None:
    rows, Q = filled(monkeypatch, block)
    rows.move(i, to)
    assert torch.equal(kept(rows), torch.cat([Q[:to], Q[i : i + 1], Q[to:i], Q[i + 1 :]]))


@pytest.mark.parametrize("block", [1, 4 * N, 1 << 20])
def test_the_last_rows_are_reflected_and_those_behind_a_rotation_move_up(
    monkeypatch, block: int
) -> None:
    rows, Q = filled(monkeypatch, block)
    mirror = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    reflection = torch.eye(3).double() - 2 * torch.outer(mirror, mirror)
    rows.reflect(mirror)
    torch.testing.assert_close(kept(rows), torch.cat([Q[:-3], reflection @ Q[-3:]]))
    mix = torch.eye(ROWS - 2, 4, dtype=torch.float64).flip(0)
    behind = kept(rows)[-2:]
    rows.rotate(mix)
    torch.testing.assert_close(kept(rows)[-2:], behind)
    assert len(rows) == 6


def kept(rows: Basis) -> torch.Tensor:
    return torch.stack([rows._rows[0].row(j) for j in range(len(rows))])


@pytest.mark.parametrize("block", [1, 4 * N, 1 << 20])
def test_subtracting_in_single_precision_is_one_sum(monkeypatch, block: int) -> None:
    """Whatever coefficients are zero, and in whatever mode of products."""
    monkeypatch.setattr(basis, "BLOCK", block)
    rng = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(N, 6, generator=rng))[0].T
    rows = Basis(Space.of({"x": torch.zeros(N)}), 6)
    for q in Q:
        rows.append([q])
    c = torch.tensor([0.0, 0.0, 1.5, 0.0, -2.0, 1e-3], dtype=torch.float64)
    w, expected = torch.ones(N), 1 - Q.T.double() @ c
    with torch.autocast("cpu"):
        rows.subtract([w], c)
    torch.testing.assert_close(w.double(), expected, rtol=0, atol=2e-6)
