"""How a user's function is called: gradients on and freed, in one precision."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.replay.gradients import leaf, required, valued
from eqtoolbox.replay.graph import ungraded
from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.thread.unmixed import unmixed
from eqtoolbox.replay.widened import Widened

SQUARE = torch.ones(4, 4)


def product_type() -> torch.dtype:
    return (SQUARE @ SQUARE).dtype


def slope(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_value_is_taken_with_gradients_whatever_the_callers_mode(mode: Any) -> None:
    with mode():
        with pytest.raises(RuntimeError, match="does not require grad"):
            slope(torch.ones(2))
        found = valued(slope, torch.ones(2))
    assert found.tolist() == [2.0, 2.0]
    assert found.grad_fn is None


def test_a_caller_with_gradients_gets_the_graph() -> None:
    assert valued(slope, torch.ones(2)).grad_fn is not None


def test_nothing_of_a_tree_keeps_the_graph() -> None:
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        found = valued(lambda: {"y": [w * 2, (w * 3, "name")]})
    assert found["y"][0].grad_fn is None
    assert found["y"][1][0].grad_fn is None
    assert found["y"][1][1] == "name"


def test_a_forward_derivative_keeps_its_tangent() -> None:
    with torch.no_grad():
        _, change = torch.func.jvp(
            lambda x: valued(torch.sin, x), (torch.zeros(2),), (SQUARE[0, :2],)
        )
    assert change.tolist() == [1.0, 1.0]


def test_only_what_trains_requires_gradients() -> None:
    trains, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    assert required(torch.zeros(2), trains).requires_grad
    assert not required(torch.zeros(2), frozen).requires_grad
    assert not leaf(torch.zeros(2, dtype=torch.int64)).requires_grad


def decorated() -> torch.dtype:
    return torch.autocast("cpu", dtype=torch.float16)(product_type)()


def entered() -> torch.dtype:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.amp.autocast("cpu", torch.float16):
        return product_type()


class Subclass(torch.autocast):
    """As torch.cuda.amp.autocast is one."""

    def __enter__(self) -> Any:
        return super().__enter__()


def of_a_subclass() -> torch.dtype:
    with Subclass("cpu", torch.float16):
        return product_type()


class Cast(torch.autograd.Function):
    """A function of the user's that is told about autocast."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def custom() -> torch.dtype:
    with torch.autocast("cpu", dtype=torch.float16):
        return Cast.apply(SQUARE).dtype  # type: ignore[no-any-return]


WAYS = [decorated, entered, of_a_subclass, custom]


@pytest.mark.parametrize("way", WAYS)
def test_no_autocast_is_entered_where_precision_is_full(way: Any) -> None:
    assert way() == torch.float16
    with unmixed() as met:
        assert way() == torch.float32
    assert met
    assert set(met) == {"cpu"}
    assert way() == torch.float16
    assert not torch.is_autocast_enabled("cpu")


def test_an_autocast_that_raises_leaves_none_behind() -> None:
    with (
        unmixed(),
        pytest.raises(ZeroDivisionError, match="division"),
        torch.autocast("cpu", dtype=torch.float16),
    ):
        _ = 1 // 0
    assert not torch.is_autocast_enabled("cpu")
    assert entered() == torch.float16


def test_another_thread_keeps_its_autocast() -> None:
    found: list[torch.dtype] = []
    with unmixed():
        thread = threading.Thread(target=lambda: found.append(entered()))
        thread.start()
        thread.join()
        assert entered() == torch.float32
    assert found == [torch.float16]


BIRTHS = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5),
    "normal": lambda: torch.normal(0.0, 1.0, (5,)),
    "linspace": lambda: torch.linspace(0, 1, 5),
    "arange": lambda: torch.arange(5.0),
    "tensor": lambda: torch.tensor([0.5, 0.25]),
    "full": lambda: torch.full((3,), 0.1),
    "named": lambda: torch.zeros(3, dtype=torch.float32),
    "cast": lambda: torch.arange(3).float(),
    "cast_to": lambda: torch.arange(3).to(torch.bfloat16),
    "window": lambda: torch.hann_window(4),
    "like": lambda: torch.rand_like(torch.zeros(5)),
    "in_place": lambda: torch.empty(5).uniform_(),
    "leaf": lambda: torch.zeros(3, requires_grad=True),
    "softmax": lambda: F.softmax(torch.ones(3), 0, dtype=torch.float32),
    "outside": lambda: OUTSIDE * 2,
}
OUTSIDE = torch.tensor([0.1, 0.2])


@pytest.mark.parametrize("name", BIRTHS)
def test_a_tensor_born_inside_is_wide_and_of_the_same_value(name: str) -> None:
    torch.manual_seed(0)
    plain = BIRTHS[name]()
    torch.manual_seed(0)
    with Widened():
        wide = BIRTHS[name]()
    assert plain.dtype in (torch.float32, torch.bfloat16)
    assert wide.dtype == torch.float64
    assert torch.allclose(wide, plain.double(), rtol=1e-6)
    assert wide.requires_grad == plain.requires_grad
    assert wide.is_leaf


def test_integers_and_masks_stay() -> None:
    with Widened():
        assert torch.arange(3).dtype == torch.int64
        assert (torch.rand(3) > 2).dtype == torch.bool
        assert torch.randint(3, (2,)).dtype == torch.int64


def test_narrow_points_are_differentiated_by_to_full_precision() -> None:
    points = torch.tensor([0.1, 0.7], requires_grad=True)
    with Widened():
        (found,) = torch.autograd.grad(points.sin().sum(), points, create_graph=True)
    assert torch.equal(found, points.detach().double().cos())


def test_a_constant_that_meets_wide_numbers_does_not_narrow_them() -> None:
    weights, logits = torch.tensor([0.1, 0.9]), torch.randn(4, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    expected = F.cross_entropy(logits, labels, weight=weights.double())
    with pytest.raises(RuntimeError, match="expected scalar type"):
        F.cross_entropy(logits, labels, weight=weights)
    with Widened():
        assert torch.equal(F.cross_entropy(logits.float(), labels, weight=weights), expected)


def test_a_backward_inside_fills_what_the_loss_made_and_nothing_of_the_training() -> None:
    live = torch.nn.Linear(2, 1)
    swapped = [p.detach().requires_grad_() for p in live.parameters()]
    with isolated(live), ungraded(swapped):
        x = torch.ones(3, 2, requires_grad=True)
        value = F.linear(x, *swapped).sum()
        value.backward()
        value.backward()
        assert x.grad is not None
        assert torch.equal(x.grad, 2 * swapped[0].expand(3, 2))
        again = torch.autograd.grad(value, swapped)  # its graph is still there
    assert len(again) == 2
    assert all(p.grad is None for p in (*swapped, *live.parameters()))


def test_the_gradient_of_a_live_tensor_is_put_back() -> None:
    live, before = torch.ones(2, requires_grad=True), torch.zeros(2)
    live.grad = before
    with isolated(torch.nn.Linear(1, 1), expected=([live],)):
        live.square().sum().backward()
        assert torch.equal(live.grad, torch.full((2,), 2.0))
    assert live.grad is before
