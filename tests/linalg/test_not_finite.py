"""Where something stops being finite is named, and differences stand in where they are smooth."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.linalg import hessian, top_eigenpairs
from eqtoolbox.linalg.not_finite import not_finite

Params = dict[str, Tensor]


def named(loss: Callable[[Tensor], Tensor], start: list[float]) -> str:
    x = torch.tensor(start, requires_grad=True)
    return not_finite(lambda p: loss(p["x"]), {"x": x})


WHERE: dict[str, tuple[Callable[[Tensor], Tensor], list[float], str]] = {
    "norm": (lambda x: x.norm().square(), [0.0, 0.0], r"second derivative .* linalg_vector_norm;"),
    "sinc": (lambda x: torch.sinc(x).sum(), [0.0, 1.0], r"second derivative .* in sinc;"),
    "power": (lambda x: x.abs().pow(1.5).sum(), [0.0, 1.0], r"second derivative .* in pow;"),
    "root": (lambda x: x.sqrt().sum(), [0.0, 1.0], r"the gradient .* in sqrt;"),
    "logarithm": (lambda x: (x * x.log()).sum(), [0.0, 1.0], r"loss .* in mul of the inf.* log;"),
    "overflow": (lambda x: x.exp().sum(), [100.0, 1.0], r"the loss .* first in exp;"),
}


@pytest.mark.parametrize("name", WHERE)
def test_the_order_and_the_operation_are_named(name: str) -> None:
    import re

    loss, start, words = WHERE[name]
    said = named(loss, start)
    assert re.search(words, said), said
    assert "eps" in said and "mask" in said


def test_nothing_is_named_where_all_is_finite() -> None:
    """Must fail: the same operations a little off the point."""
    for loss, start, _ in WHERE.values():
        assert named(loss, [min(s, 1.0) + 0.5 for s in start]) == ""


def test_an_infinity_that_a_mask_makes_is_not_blamed() -> None:
    def masked(x: Tensor) -> Tensor:
        scores = x.outer(x).masked_fill(torch.ones(2, 2).triu(1).bool(), -torch.inf)
        return (scores.softmax(1) @ (x * 0).norm().expand(2)).sum()

    assert "first in linalg_vector_norm;" in named(masked, [1.0, 2.0])


class Distance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] - x[None]).norm(dim=-1)


class Whole:
    """A loss that says which model it is of."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Distance())
            self.x = torch.randn(5, 3)

    def __call__(self, params: Params) -> Tensor:
        return torch.func.functional_call(self.model, params, (self.x.to(params["0.bias"]),)).mean()


def test_the_module_is_named_where_the_loss_has_a_model() -> None:
    loss = Whole()
    params = {n: p.detach().requires_grad_() for n, p in loss.model.named_parameters()}
    assert "linalg_vector_norm of module 2;" in not_finite(loss, params, model=loss.model)


def test_the_search_draws_from_no_global_stream() -> None:
    before = torch.get_rng_state()
    named(*WHERE["norm"][:2])
    assert torch.equal(before, torch.get_rng_state())


def coincide(p: Params) -> Tensor:
    d = p["w"] - torch.tensor([1.0, 2.0, 3.0]).to(p["w"])
    return torch.exp(-(torch.linalg.norm(d) ** 2))


def waves(p: Params) -> Tensor:
    return torch.sinc(torch.stack((p["w"][0], 2 * p["w"][0] + 1))).sum() + p["w"][1] ** 2


SINC = -14.349699663  # sinc''(-1/2) - 4 pi^2 / 3


@pytest.mark.parametrize(
    ("loss", "start", "truth"),
    [
        (coincide, [1.0, 2.0, 3.0], [-2.0, -2.0]),  # exp(-|d|^2) at its top: H = -2
        (waves, [-0.5, 1.0], [2.0, SINC]),
    ],
    ids=["distance 0", "sinc 0"],
)
def test_differences_stand_in_for_a_second_derivative_that_is_nan(
    loss: Callable[[Params], Tensor],
    start: list[float],
    truth: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="eqtoolbox"):
        made = hessian(loss, {"w": torch.tensor(start)})
        found = top_eigenpairs(made, 2, tol=1e-3)
    assert found.values.tolist() == pytest.approx(truth, rel=1e-3)
    assert made.differenced.startswith("the second derivative is not finite")
    assert len(caplog.records) == 1


def test_an_exact_product_is_not_replaced() -> None:
    """Must fail: the product of three numbers, of which one is 0."""
    made = hessian(lambda p: torch.prod(p["w"]), {"w": torch.tensor([0.0, 2.0, 3.0])})
    assert top_eigenpairs(made, 1).values.tolist() == pytest.approx([13**0.5])
    assert made.differenced == ""


def test_a_kink_where_the_second_derivative_is_nan_is_refused() -> None:
    loss = lambda p: p["w"].norm() + (p["w"] - 1).square().sum()
    made = hessian(loss, {"w": torch.zeros(3)})
    with pytest.raises(
        FloatingPointError, match=r"linalg_vector_norm; .* there are no differences"
    ):
        made({"w": torch.ones(3)})


def test_losses_in_pieces_say_where_and_take_no_differences() -> None:
    made = hessian([coincide, coincide], {"w": torch.tensor([1.0, 2.0, 3.0])}, weights=[1, 1])
    with pytest.raises(FloatingPointError, match="first in linalg_vector_norm;"):
        made({"w": torch.ones(3)})
