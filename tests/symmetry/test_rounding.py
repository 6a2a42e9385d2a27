"""What a search finds out in passing: coarse rounding of any gradient, and what epsilons meet."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.search.problem import posed
from eqtoolbox.weights.search.rounding import Coarse
from eqtoolbox.weights.search.steady import Steady

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.complex128]


@pytest.mark.parametrize("dtype", KINDS)
def test_coarse_rounding_is_of_the_size_of_the_root_of_the_types_own(dtype: torch.dtype) -> None:
    w = torch.ones(20_000, dtype=dtype, requires_grad=True)
    with Coarse():
        (g,) = torch.autograd.grad((w * w.conj()).real.sum(), w)
    off = (g / 2 - 1).abs().float()
    size = float(off.square().mean().sqrt()) / torch.finfo(dtype).eps ** 0.5
    assert g.dtype == dtype and 0.7 < size < 2.5  # one result is rounded, or two or three


def test_gradients_that_are_sparse_are_rounded_coarsely_too() -> None:
    w = torch.ones(10, 4, dtype=torch.float64, requires_grad=True)
    with Coarse():
        rows = F.embedding(torch.tensor([1, 2, 1]), w, sparse=True)
        (g,) = torch.autograd.grad(rows.square().sum(), w)
    assert g.is_sparse
    off = (g.to_dense()[[1, 2]] / torch.tensor([[4.0], [2.0]]) - 1).abs()
    assert bool((off > 0).all() and (off < 1e-6).all())


class Counted(nn.Module):
    """Normalised twice, by a kernel and by hand; counts its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Linear(64, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = self.norm(self.first(x)).relu()
        return self.last(z / (z.square().mean(1, keepdim=True) + 1e-5).sqrt())


def test_what_epsilons_are_added_to_is_noted_while_the_gradient_is_made() -> None:
    model, x = Counted().double(), torch.randn(3000, 16, dtype=torch.float64)
    y = torch.arange(3000) % 3

    def loss(params: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    problem = posed(loss, dict(model.named_parameters()), None, None, torch.float64)
    assert problem.exact and problem.point.whole  # long to evaluate, of few parameters
    problem.gradient(lambda *_: None)
    calls = model.calls
    noted = problem.amounts
    assert model.calls == calls and len(noted) == 2
    for mine, its in zip(noted, Steady.at(loss, problem.point), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=0)
