"""What cannot be undone: finite errors and floors, no derivative and no average over a group."""

import math

import pytest
import torch
from torch import Tensor

from eqtoolbox.symmetry import Equivariance, equivariance_error, pulled_back
from eqtoolbox.symmetry.actions import check_action, trivial
from eqtoolbox.symmetry.each import Each, Rebuilt, batch_of_one, one_sample
from eqtoolbox.symmetry.finite import Symmetric
from eqtoolbox.symmetry.group import Cyclic
from eqtoolbox.symmetry.irregular import DropPoints, KeepLargest, Quantise, Sorted, Strengths
from eqtoolbox.symmetry.lie import lie_derivative
from eqtoolbox.symmetry.linear import Powers, positions, vectors
from eqtoolbox.symmetry.matrices import SE3, SO3
from eqtoolbox.symmetry.permuting import Permute, Signed
from eqtoolbox.symmetry.resampling import Shift
from eqtoolbox.symmetry.tangent import NoTangent
from eqtoolbox.symmetry.unbounded import Translations


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = [
    (Strengths(3), Quantise(0.5), lambda x: torch.round(x / 2) * 2, lambda x: x),
    (Strengths(1), Sorted(1), lambda x: x.sum(1), lambda x: x[:, 0]),
    (Strengths(2), KeepLargest((4, 2), dim=1), lambda x: x.abs().amax(1), lambda x: x.sum(1)),
    (Strengths(2), DropPoints((1, 2)), lambda x: x.mean(1) * 0 + 1, lambda x: x.sum(1)),
]


@pytest.mark.parametrize(("group", "action", "steady", "careless"), CASES)
def test_finite_errors_tell_steady_functions_from_careless_ones(
    group, action, steady, careless
) -> None:
    x = normal(8, 5, 3)
    if isinstance(action, Quantise):  # on its own grid only, else rounding twice moves halves
        x = torch.round(x * 4)
    claim = Equivariance(group, action, trivial)
    good = equivariance_error(steady, x, claim, loss=lambda y: y.square().mean())
    if not isinstance(action, Quantise):
        assert good.verdict == ("trivial" if isinstance(action, DropPoints) else "holds")
    bad = equivariance_error(careless, x, claim)
    assert bad.verdict == "violated"
    assert math.isnan(bad.orbit_variance)
    assert good.percent_of_loss is None
    assert bad.enumerated


def test_relative_error_of_quantisation_is_its_closed_form() -> None:
    x = torch.tensor([[0.3, 0.9], [1.2, -0.4]], dtype=torch.float64)
    claim = Equivariance(Strengths(1), Quantise(1.0), trivial)
    found = equivariance_error(lambda x: x, x, claim)
    change = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64).square().sum()
    assert found.relative_error == pytest.approx(float((change / x.square().sum()).sqrt()))


def test_consistency_survives_where_averages_do_not() -> None:
    claim = Equivariance(Strengths(1), KeepLargest((1,)), trivial)
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9]])
    assert equivariance_error(lambda x: x, x, claim).consistency == 1.0
    assert equivariance_error(lambda x: -x, x, claim).consistency < 1.0


def test_what_cannot_be_undone_is_neither_averaged_nor_differentiated() -> None:
    claim, x = Equivariance(Strengths(1), Sorted(), trivial), normal(4, 3)
    with pytest.raises(ValueError, match="cannot be undone: nothing can be pulled back"):
        pulled_back(lambda x: x, x, claim, [1])
    with pytest.raises(ValueError, match="is discrete: it has no derivative"):
        lie_derivative(lambda x: x, x, claim)
    rounded = Equivariance(SO3(), lambda g, x: vectors(g, x).round(), trivial)
    with pytest.raises(NoTangent, match="a zero derivative would not mean invariance"):
        lie_derivative(lambda x: x, x, rounded)
    with pytest.raises(ValueError, match="has no products"):
        Strengths(1).compose(1, 1)
    with pytest.raises(ValueError, match="cannot drop 5 of 3 points"):
        DropPoints((5,))(1, normal(2, 3, 3))


def test_strengths_are_checked_for_what_they_can_obey() -> None:
    check_action(Strengths(2), Quantise(0.5), normal(3, 4))
    with pytest.raises(ValueError, match="breaks S_e = id"):
        check_action(Strengths(1), lambda g, x: x.round(), normal(3, 4))
    with pytest.raises(ValueError, match="one sample at a time"):
        check_action(Strengths(1), lambda g, x: x - g * x.mean(0), normal(3, 4))


def neighbours(batch):
    """Edges below a distance of 1, as node pairs in the order of the nodes."""
    x = batch["x"][0]
    near = torch.cdist(x, x) < 1.0
    near.fill_diagonal_(False)
    edges = near.nonzero().T[None]
    return batch | {"edges": edges}


def messages(graph):
    """Forces along edges."""
    i, j = graph["edges"]
    pull = (graph["x"][j] - graph["x"][i]) * (
        -(graph["x"][j] - graph["x"][i]).square().sum(1, True)
    ).exp()
    return torch.zeros_like(graph["x"]).index_add(0, i, pull)


def test_neighbour_lists_are_rebuilt_after_the_move() -> None:
    batch = neighbours(
        {"x": 0.7 * normal(1, 12, 3), "edges": torch.zeros(1, 2, 0, dtype=torch.long)}
    )
    moved = Each({"x": positions, "edges": trivial})
    claim = Equivariance(SE3(), Rebuilt(moved, neighbours), vectors)
    claim.check(batch, batch_of_one(messages({k: v[0] for k, v in batch.items()})))
    assert equivariance_error(one_sample(messages), batch, claim).verdict == "holds"
    assert {r.verdict for r in lie_derivative(one_sample(messages), batch, claim)} == {"holds"}


def test_a_list_kept_under_a_stretch_differs_from_one_rebuilt() -> None:
    """Edges within 1 are lost by doubling all distances, unless the list is stale."""
    from eqtoolbox.symmetry.scaling import Degree
    from eqtoolbox.symmetry.unbounded import Scalings

    batch = neighbours(
        {"x": 0.5 * normal(1, 12, 3), "edges": torch.zeros(1, 2, 0, dtype=torch.long)}
    )
    parts = Each({"x": Degree(1), "edges": trivial})
    count = lambda g: torch.tensor([float(g["edges"].shape[1])]) + 0 * g["x"].sum()
    stale = Equivariance(Scalings(), parts, trivial)
    fresh = Equivariance(Scalings(), Rebuilt(parts, neighbours), trivial)
    assert equivariance_error(one_sample(count), batch, stale).verdict == "holds"
    assert equivariance_error(one_sample(count), batch, fresh, check=False).verdict == "violated"


def test_a_pair_of_matrices_is_a_claim() -> None:
    """Inputs turn by 120 degrees, outputs by the same permutation of three sensors."""
    turn = Powers(
        torch.linalg.matrix_exp(2 * math.pi / 3 * torch.tensor([[0.0, -1], [1, 0]]).double())
    )
    cycle = Signed.of([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert (turn.order, cycle.group.order) == (3, 3)
    claim = Equivariance(Cyclic(3), turn, cycle)
    angles = 2 * math.pi / 3 * torch.arange(3).double()
    sensors = torch.stack([angles.cos(), angles.sin()], 1)
    assert (
        equivariance_error(lambda x: (x @ sensors.T).exp(), normal(9, 2), claim).verdict == "holds"
    )
    bent = sensors + 0.1
    assert (
        equivariance_error(lambda x: (x @ bent.T).exp(), normal(9, 2), claim).verdict == "violated"
    )


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3), r"square matrix, got shape \(2, 3\)"),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "no power of the matrix up to 64"),
    ],
)
def test_matrices_of_no_finite_order_are_refused(matrix, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Powers(matrix)


@pytest.mark.parametrize(("reach", "shape"), [((2,), (3, 17)), ((1, 1, 1), (1, 9, 9, 9))])
def test_shifts_move_series_and_volumes(reach, shape) -> None:
    x, group = normal(2, *shape), Translations(reach)
    check_action(group, Shift(reach), x)
    dims = tuple(range(-len(reach), 0))
    causal = lambda x: x + torch.roll(x, (1,) * len(reach), dims)
    claim = Equivariance(group, Shift(reach), Shift(reach, margin=1))
    assert equivariance_error(causal, x, claim).verdict == "holds"
    ramp = torch.arange(float(shape[-1])).double()
    assert equivariance_error(lambda x: x * ramp, x, claim).verdict == "violated"


def test_permuted_sets_with_dropped_points_keep_their_mean_only_on_average() -> None:
    claim = Equivariance(Strengths(1), DropPoints((2,)), trivial)
    constant = torch.ones(3, 6, 2, dtype=torch.float64)
    assert equivariance_error(lambda x: x.mean(1), constant, claim).verdict == "holds"
    assert equivariance_error(lambda x: x.mean(1), normal(3, 6, 2), claim).verdict == "violated"
    assert Symmetric(6).invertible and Permute(-2)((1, 0), normal(1, 2, 2)).shape == (1, 2, 2)


def test_one_sample_wants_a_batch_of_one_and_says_how_to_make_it() -> None:
    sample = {"x": torch.randn(5, 3), "edge_index": torch.zeros(2, 4, dtype=torch.long)}

    def f(graph: dict[str, Tensor]) -> Tensor:
        return graph["x"][graph["edge_index"][0]].sum(0)

    assert one_sample(f)(batch_of_one(sample)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"a batch of one, got .* \(5, 3\); .*batch_of_one\("):
        one_sample(f)(sample)
