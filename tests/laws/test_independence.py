"""The charges found are all there are: their rank is D - dim Lie, and closed forms say the same."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.independence import Outputs, charges_rank, flat, lie_dimension, rank
from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.laws.test_family_laws import Params

NETWORKS = [
    ((3, 4, 2), False, False), ((2, 6, 2), False, True), ((5, 3, 4, 2), False, True),
    ((3, 4, 2), True, False), ((4, 5, 3), True, True), ((3, 4, 3, 2), True, True),
]  # fmt: skip


def problem(widths: tuple[int, ...], relu: bool, bias: bool) -> tuple[nn.Module, Params]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias, dtype=torch.float64)] + [nn.ReLU()] * relu
    model = nn.Sequential(*layers[: len(layers) - relu])
    return model, {n: torch.randn_like(p) for n, p in model.named_parameters()}


def charges(model: nn.Module, params: Params) -> list[ContinuousSymmetry]:
    x = torch.randn(32, next(iter(params.values())).shape[1], dtype=torch.float64)
    y = torch.randn(32, dtype=torch.float64)[:, None]
    every = find_symmetries(lambda p: (functional_call(model, p, (x,)) - y).square().mean(), params)
    return [s for s in every if isinstance(s, ContinuousSymmetry) and s.status == "verified"]


def by_paths(widths: tuple[int, ...], relu: bool, bias: bool, samples: int) -> Outputs:
    """The network as a function of flat parameters, with every activation pattern for ReLU."""
    masks = [(torch.rand(samples, w) > 0.5).double() if relu else 1.0 for w in widths[1:-1]]

    def outputs(theta: Tensor, x: Tensor) -> Tensor:
        parts = list(theta.split([k for n, m in pairwise(widths) for k in (n * m, m)[: 1 + bias]]))
        for (n, m), mask in zip(pairwise(widths), [*masks, 1.0], strict=True):
            x = x @ parts.pop(0).view(m, n).mT
            x = (x + parts.pop(0) if bias else x) * mask
        return x

    return outputs


@pytest.mark.parametrize(("widths", "relu", "bias"), NETWORKS, ids=str)
def test_the_charges_found_are_as_many_as_the_lie_algebra_leaves(
    widths: tuple[int, ...], relu: bool, bias: bool
) -> None:
    model, params = problem(widths, relu, bias)
    theta = flat(params)
    samples = 3 * len(theta) + 30
    x = torch.randn(samples, widths[0], dtype=torch.float64)
    outputs = by_paths(widths, relu, bias, samples)
    lie = lie_dimension(outputs, theta, x, torch.Generator().manual_seed(0))
    members = charges(model, params)
    assert charges_rank(members, params) == len(theta) - lie
    fewer = [m for m in members if m is not next(m for m in members if m.charges)]
    assert charges_rank(fewer, params) < len(theta) - lie, "a missing family is noticed"


def test_two_layer_counts_are_the_closed_forms() -> None:
    """r (r + 1) / 2 for a linear pair of full rank, one a unit for ReLU (Marcotte et al. 2023)."""
    model, params = problem((3, 4, 2), False, False)
    assert charges_rank(charges(model, params), params) == 10
    model, params = problem((3, 4, 2), True, True)
    assert charges_rank(charges(model, params), params) == 4


def test_a_wide_linear_pair_has_fewer_independent_charges_than_charges() -> None:
    """Rank r of (U; V) is 4 of 6: r (r + 1) / 2 + r (6 - r) = 18 of 21 are independent."""
    model, params = problem((2, 6, 2), False, False)
    members = charges(model, params)
    assert sum(m.charges for m in members) == 21
    assert charges_rank(members, params) == 18


def test_without_brackets_the_algebra_looks_smaller_than_it_is() -> None:
    widths = (3, 4, 2)
    _, params = problem(widths, False, False)
    theta, x = flat(params), torch.randn(60, 3, dtype=torch.float64)
    outputs = by_paths(widths, False, False, 60)
    shallow = lie_dimension(outputs, theta, x, torch.Generator().manual_seed(0), depth=1)
    assert shallow == 6, "the outputs alone move six directions: the entries of the product"
    assert lie_dimension(outputs, theta, x, torch.Generator().manual_seed(0)) == 10


def test_rank_ignores_the_length_of_rows() -> None:
    rows = torch.tensor([[1.0, 0, 0], [0, 1e-12, 0], [1.0, 1e-12, 0]], dtype=torch.float64)
    assert rank(rows) == 2
