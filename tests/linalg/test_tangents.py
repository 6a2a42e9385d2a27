"""Forward derivatives of several threads are what each is alone, and leave no level open."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.function import Function

from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.replay.gradients import required
from eqtoolbox.symmetry.derivative import Derivative

X = torch.tensor([1.0, 2.0])


def slow(x: Tensor) -> Tensor:
    """A cube that takes long enough for the other threads to arrive."""
    time.sleep(0.01)
    return x**3


def product() -> Any:
    H = hessian(lambda p: slow(p["x"]).sum(), {"x": X}, forward=True)
    return [H({"x": torch.ones(2)})["x"].tolist() for _ in range(3)]


def lie() -> Any:
    derivative = Derivative(slow)
    found = [derivative(X, [torch.ones(2)])[1][0].tolist() for _ in range(3)]
    return found, derivative.mode


def vectorised() -> Any:
    derivative = Derivative(slow)
    (first, second) = derivative(X, [torch.ones(2), 2 * torch.ones(2)])[1]
    return first.tolist(), second.tolist(), derivative.mode


class Failing(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * 3


def refused() -> Any:
    """An operation without a forward derivative leaves by an exception."""
    derivative = Derivative(lambda x: Failing.apply(slow(x)))
    derivative(X, [torch.ones(2)])
    return derivative.mode


@pytest.mark.parametrize("measured", [product, lie, vectorised, refused])
def test_threads_get_what_each_gets_alone(measured: Callable[[], Any]) -> None:
    alone = measured()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: measured(), range(12)))
    assert found == [alone] * 12
    assert forward_ad._current_level == -1
    assert torch.func.jvp(torch.square, (X,), (X,))[1].tolist() == [2.0, 8.0]


def test_a_level_of_the_users_makes_derivatives_go_backward() -> None:
    """Two levels at once are more than torch has: no reason to fail."""
    derivative = Derivative(lambda x: x**3)
    with ThreadPoolExecutor(1) as pool, forward_ad.dual_level():
        one = [torch.ones(2)]
        found = pool.submit(derivative, X, one).result()[1][0].tolist()
        both = pool.submit(derivative, X, one * 2).result()[1][1].tolist()
    assert found == both == [3.0, 12.0]
    assert derivative.mode == "double backward"


def test_a_level_of_another_thread_is_none_of_ours() -> None:
    """A tensor that carries no tangent becomes a leaf, whatever others differentiate."""
    like = X.clone().requires_grad_()
    with ThreadPoolExecutor(1) as pool, forward_ad.dual_level():
        moving = forward_ad.make_dual(X, X)
        assert required(moving, like) is moving
        assert pool.submit(required, X, like).result().requires_grad
