"""Laws of convolutions: torch's value and gradient to the bit, and the derivatives after."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.replay.convolution import convolution
from eqtoolbox.replay.operations import Operations
from tests.replay.test_batch_norm import Activations

CASES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": (torch.conv1d, (2, 3, 9), (4, 3, 3), {"padding": 1}),
    "2d": (torch.conv2d, (2, 3, 6, 5), (4, 3, 3, 3), {"padding": (1, 0)}),
    "3d": (torch.conv3d, (2, 2, 4, 4, 3), (3, 2, 2, 2, 2), {}),
    "stride": (torch.conv2d, (2, 3, 7, 7), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": (torch.conv2d, (2, 3, 7, 7), (4, 3, 3, 2), {"dilation": (2, 1)}),
    "groups": (torch.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2}),
    "depthwise": (torch.conv1d, (2, 3, 8), (3, 1, 3), {"groups": 3, "stride": (2,)}),
    "no shift": (torch.conv2d, (2, 3, 5, 5), (4, 3, 2, 2), {"bias": None}),
    "same": (torch.conv2d, (2, 3, 5, 5), (4, 3, 3, 3), {"padding": "same"}),
    "one sample": (torch.conv2d, (3, 5, 5), (4, 3, 3, 3), {}),
}


def given(case: str, dtype: torch.dtype, learned: bool = True) -> tuple[list[Tensor], Any]:
    """Input, weights and shift, and the rest of the call; `learned`: a slope by the input, too."""
    _, *shapes, rest = CASES[case]
    rng = torch.Generator().manual_seed(0)
    sizes = (*shapes, shapes[1][:1])
    made = [torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in sizes]
    return [t.requires_grad_(learned or t is not made[0]) for t in made], dict(rest)


def called(function: Callable[..., Tensor], tensors: list[Tensor], rest: dict[str, Any]) -> Tensor:
    return function(*tensors[:2], **{"bias": tensors[2], **rest})


def derivatives(function: Any, case: str, dtype: torch.dtype, learned: bool) -> list[Any]:
    """Value, gradient, a product with the Hessian, and the gradient of its length."""
    tensors, rest = given(case, dtype, learned)
    y = called(function, tensors, rest)
    loss = (y.sin() * torch.arange(y.numel()).to(y).reshape(y.shape)).sum()
    by = [t for t in tensors if t.requires_grad]
    ask: dict[str, Any] = {"materialize_grads": True, "create_graph": True}
    first = torch.autograd.grad(loss, by, **ask)
    along = [torch.cos(torch.arange(g.numel()).to(g)).reshape(g.shape) for g in first]
    second = torch.autograd.grad(first, by, along, **ask)
    size = torch.stack([h.square().sum() for h in second]).sum()
    return [[y], first, second, torch.autograd.grad(size, by, materialize_grads=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_torchs_to_the_bit(case: str, dtype: torch.dtype) -> None:
    function = CASES[case][0]
    for learned in (True, False):
        ways = (convolution(function), function)
        ours, torchs = (derivatives(way, case, dtype, learned) for way in ways)
        assert torch.equal(ours[0][0], torchs[0][0])
        assert all(map(torch.equal, ours[1], torchs[1]))


@pytest.mark.parametrize("learned", [True, False], ids=["inside", "first layer"])
@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_all_orders_are_torchs(case: str, learned: bool) -> None:
    function = CASES[case][0]
    ways = (convolution(function), function)
    ours, torchs = (derivatives(way, case, torch.float64, learned) for way in ways)
    for mine, its in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


def test_another_stride_is_seen() -> None:
    function = CASES["stride"][0]
    wrong = lambda *given, **rest: convolution(function)(*given, **{**rest, "dilation": 2})
    ours, torchs = (derivatives(f, "stride", torch.float64, True) for f in (wrong, function))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours[2], torchs[2], rtol=1e-10, atol=1e-10)


def test_a_replay_of_a_first_layer_makes_no_slope_by_its_input() -> None:
    counts = []
    for scope in (Operations(), torch.enable_grad()):
        (x, weight, bias), rest = given("2d", torch.float32, learned=False)
        with scope:
            y = F.conv2d(x, weight, bias, **rest)
            (first,) = torch.autograd.grad(y.sin().sum(), [weight], create_graph=True)
        with Activations(x.numel()) as seen:
            torch.autograd.grad(first, [weight], first.detach())
        counts.append(seen.count)
    assert counts[0] == 0 < counts[1]


def test_forward_mode_transforms_and_autocast_are_left_to_torch() -> None:
    (x, weight, bias), _ = given("2d", torch.float64)
    loss = lambda w: convolution(torch.conv2d)(x.detach(), w, bias.detach()).sin().sum()
    slope = torch.func.grad(loss)(weight)
    _, rate = torch.func.jvp(loss, (weight,), (torch.ones_like(weight),))
    torch.testing.assert_close(slope, torch.autograd.grad(loss(weight), weight)[0])
    torch.testing.assert_close(rate, slope.sum())
    with torch.autocast("cpu"):
        narrow = convolution(torch.conv2d)(x.float(), weight.float(), bias.float())
    assert narrow.dtype == torch.bfloat16
