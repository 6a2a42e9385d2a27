"""Laws of batch normalisation: torch's value and gradient to the bit, and the derivatives after."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.replay.batch_norm import batch_norm
from eqtoolbox.replay.operations import Operations

SHAPES = [(6, 3, 4, 5), (9, 3), (4, 3, 7), (2, 3, 2, 2, 2)]
EPS = 1e-3


def given(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = (shape, (3,), (3,))
    made = [torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in sizes]
    x, weight, bias = (t.requires_grad_() for t in made)
    return x, weight, bias


def spelt(x: Tensor, mean: Any, var: Any, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """From operations whose derivatives of all orders torch knows."""
    over, wide = [k for k in range(x.dim()) if k != 1], [1, -1] + [1] * (x.dim() - 2)
    h = (x - x.mean(over, keepdim=True)) / (x.var(over, keepdim=True, correction=0) + EPS).sqrt()
    return h * weight.view(wide) + bias.view(wide)


def derivatives(function: Callable[..., Tensor], shape: Any, dtype: torch.dtype) -> list[Any]:
    """Value, gradient, a product with the Hessian, and the gradient of its length."""
    affine = given(shape, dtype)
    y = function(affine[0], None, None, *affine[1:], True, 0.1, EPS)
    loss = (y.sin() * torch.arange(y.numel()).to(y).reshape(y.shape)).sum()
    first = torch.autograd.grad(loss, affine, create_graph=True)
    along = [torch.cos(torch.arange(g.numel()).to(g)).reshape(g.shape) for g in first]
    second = torch.autograd.grad(first, affine, along, create_graph=True)
    size = torch.stack([h.square().sum() for h in second]).sum()
    return [[y], first, second, torch.autograd.grad(size, affine)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_gradient_and_running_statistics_are_torchs_to_the_bit(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    found = []
    for function in (batch_norm, F.batch_norm):
        affine, seen = given(shape, dtype), (torch.zeros(3).to(dtype), torch.ones(3).to(dtype))
        y = function(affine[0], *seen, *affine[1:], True, 0.1, EPS)
        found.append([y, *torch.autograd.grad(y.sin().sum(), affine), *seen])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_of_all_orders_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    ours, wanted = (derivatives(f, shape, torch.float64) for f in (batch_norm, spelt))
    for mine, its in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_a_derivative_that_misses_a_term_is_seen() -> None:
    """Torch's own third one takes the statistics for constants."""
    torchs, wanted = (derivatives(f, SHAPES[0], torch.float64) for f in (F.batch_norm, spelt))
    torch.testing.assert_close(torchs[2], wanted[2], rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(torchs[3], wanted[3], rtol=1e-9, atol=1e-9)


class Activations(TorchDispatchMode):
    """Counts operations that make as much as an activation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += isinstance(made, Tensor) and made.numel() == self.size
        return made


def test_a_replays_product_makes_less_than_half_of_the_activations() -> None:
    counts = []
    for scope in (Operations(), torch.enable_grad()):
        x, *affine = given(SHAPES[0], torch.float32)
        with scope:
            y = F.batch_norm(x, None, None, *affine, True, 0.1, EPS)
            first = torch.autograd.grad(y.sin().sum(), [x, *affine], create_graph=True)
        with Activations(x.numel()) as seen:
            torch.autograd.grad(first, [x, *affine], [g.detach() for g in first])
        counts.append(seen.count)
    assert counts[0] < counts[1] / 2


@pytest.mark.parametrize(
    "change",
    [
        {"training": False},
        {"weight": None},
        {"bias": None},
        {"input": torch.randn(4, 3).bfloat16()},
    ],
    ids=["running statistics", "no gain", "no shift", "mixed precision"],
)
def test_other_calls_are_torchs(change: dict[str, Any]) -> None:
    x, weight, bias = given((9, 3), torch.float32)
    call = {"input": x, "weight": weight, "bias": bias, "training": True, **change}
    for made in (batch_norm, F.batch_norm):
        y = made(running_mean=torch.zeros(3), running_var=torch.ones(3), **call)
        assert y.grad_fn is None or "BatchNormBackward0" in y.grad_fn.name()


def test_a_single_value_is_refused_as_by_torch() -> None:
    _, weight, bias = given((9, 3), torch.float32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(torch.ones(1, 3), None, None, weight, bias, training=True)


class Hears(TorchFunctionMode):
    """Notes which functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [F.batch_norm, torch.conv1d])
def test_a_mode_around_a_replay_hears_of_the_call(function: Any) -> None:
    x, weight, bias = given((2, 3, 4), torch.float32)
    with Hears() as mode, Operations():
        if function is F.batch_norm:
            F.batch_norm(x, None, None, weight, bias, True)
        else:
            torch.conv1d(x, weight.reshape(1, 3, 1))
    assert function in mode.heard


def test_forward_mode_and_transforms_are_left_to_torch() -> None:
    x, weight, bias = given((9, 3), torch.float64)
    loss = lambda w: batch_norm(x, None, None, w, bias, training=True).sin().sum()
    slope = torch.func.grad(loss)(weight)
    _, rate = torch.func.jvp(loss, (weight,), (torch.ones_like(weight),))
    torch.testing.assert_close(slope, torch.autograd.grad(loss(weight), weight)[0])
    torch.testing.assert_close(rate, slope.sum())
