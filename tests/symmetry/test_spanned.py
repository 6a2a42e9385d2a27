"""Claims of a discovered algebra: exact turns of what was found with an error, nothing else."""

import pytest
import torch
from torch import Tensor

from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.algebra import Discovery, discover_data
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.matrices import matrix
from eqtoolbox.symmetry.spanned import Spanned, found_claim, found_turns

X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MIX = torch.tensor([[1.0, 0.3, 0.0], [-0.2, 0.7, 0.4], [0.5, 0.0, 1.2]], dtype=torch.float64)


def hidden(x: Tensor) -> Tensor:
    """Turns about an axis in mixed coordinates."""
    z = x @ MIX.T
    return (z[:, :2].square().sum(1).sin() + z[:, 2]).unsqueeze(1)


def test_a_turn_in_mixed_coordinates_becomes_a_claim_that_holds() -> None:
    found = discover_data(hidden, X)
    claim, finite = found_claim(found), found_turns(found, 6)
    assert (claim.name, finite.name) == ("found.so2", "found.cyclic6")
    for one in (claim, finite):
        assert equivariance_error(hidden, X, one).relative_error < 1e-9
    assert equivariance_error(lambda x: x[:, :1], X, finite).verdict == "violated"


def test_an_algebra_known_with_an_error_gives_a_group_without() -> None:
    """The elements return and the law holds as well as it is known."""
    found = discover_data(hidden, X)
    noise = torch.randn(found.basis.shape, generator=torch.Generator().manual_seed(1)).double()
    rough = Discovery(**{**vars(found), "basis": found.basis + 3e-3 * noise})
    claim = found_turns(rough, 8)
    turn = claim.input_action.matrix
    assert torch.allclose(torch.linalg.matrix_power(turn, 8), torch.eye(3).double(), atol=1e-12)
    error = equivariance_error(hidden, X, claim).relative_error
    assert 1e-4 < error < 0.1


def test_rotations_of_space_are_drawn_from_their_span() -> None:
    radius = lambda x: (x @ MIX.T).norm(dim=1, keepdim=True)
    claim = found_claim(discover_data(radius, X))
    assert claim.name == "found.so3"
    assert equivariance_error(radius, X, claim).relative_error < 1e-9
    drawn = claim.group.sample(400, torch.Generator().manual_seed(0))
    traces = torch.stack([matrix(g).trace() for g in drawn])  # of the Haar measure: mean 0, var 1
    assert abs(float(traces.mean())) < 4 / 20 and abs(float(traces.var()) - 1) < 0.4


def test_what_ignores_directions_turns_in_the_others_only() -> None:
    disc = lambda x: x[:, :2].norm(dim=1, keepdim=True)
    turn = found_claim(discover_data(disc, X)).group.basis[0]
    assert torch.allclose(turn[2], torch.zeros(3).double(), atol=1e-6)
    assert equivariance_error(disc, X, found_turns(discover_data(disc, X))).relative_error < 1e-9


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, :1] * x[:, 1:2], "does not return|stretches"),
        (lambda x: (x[:, :2].square().sum(1) - x[:, 2].square())[:, None], "no definite form"),
        (lambda x: x.sin().sum(1, keepdim=True), "no symmetry was found"),
        (lambda x: x[:, :1].sin(), "nothing turns|stretches|no definite form"),
    ],
)
def test_what_does_not_turn_makes_no_claim(function, message: str) -> None:
    found = discover_data(function, X)
    for make in (found_claim, found_turns):
        with pytest.raises(ValueError, match=message):
            make(found)


def test_a_basis_that_stretches_spans_no_compact_group() -> None:
    with pytest.raises(ValueError, match="turn and not stretch"):
        Spanned(torch.eye(2)[None])
    with pytest.raises(ValueError, match=r"must be \(k, d, d\)"):
        Spanned(torch.eye(2))


def test_speeds_two_and_one_return_together() -> None:
    turn = torch.zeros(1, 4, 4, dtype=torch.float64)
    turn[0, 0, 1], turn[0, 1, 0], turn[0, 2, 3], turn[0, 3, 2] = -2.0, 2.0, -1.0, 1.0
    group = Spanned(turn)
    drawn = group.sample(2000, torch.Generator().manual_seed(0))
    slow = torch.stack([vectors(g, torch.tensor([0.0, 0, 1, 0]).double())[2] for g in drawn])
    assert abs(float(slow.mean())) < 4 * 0.71 / 2000**0.5  # half a period would have mean 0, too,
    assert bool((slow > 0).any() and (slow < 0).any())
    sine = torch.stack([vectors(g, torch.tensor([0.0, 0, 1, 0]).double())[3] for g in drawn])
    assert abs(float(sine.mean())) < 4 * 0.71 / 2000**0.5  # but this one 2 / pi
