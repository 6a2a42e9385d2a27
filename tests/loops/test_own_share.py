"""An own share is what the backwards of this process gave, whatever becomes of `.grad`."""

import copy

import pytest
import torch
from torch import nn

from eqtoolbox.watch.capture.own_share import OwnShare


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def backward(model: nn.Linear, factor: float) -> None:
    (factor * model(torch.ones(4, 3)).square().sum()).backward()


def test_it_is_the_sum_over_backwards_before_others_change_it() -> None:
    model, twin = layer(), layer()
    share = OwnShare(dict(model.named_parameters()))
    for factor in (1.0, 2.0):
        backward(model, factor)
        backward(twin, factor)
        for p in model.parameters():
            p.grad.mul_(0.5)  # as averaging with others would
    found = share.gradient(scale=4.0)
    assert found is not None
    for name, p in twin.named_parameters():
        torch.testing.assert_close(found[name], p.grad / 4)
        assert not torch.allclose(dict(model.named_parameters())[name].grad, p.grad)


@pytest.mark.parametrize("to_none", [True, False])
def test_what_was_cleared_counts_no_more(to_none: bool) -> None:
    model, twin = layer(), layer()
    share = OwnShare(dict(model.named_parameters()))
    backward(model, 3.0)
    model.zero_grad(set_to_none=to_none)
    backward(model, 1.0)
    backward(twin, 1.0)
    found = share.gradient(scale=1.0)
    assert found is not None
    torch.testing.assert_close(found["weight"], twin.weight.grad)


def test_released_it_leaves_no_hook_and_gradients_are_as_without_it() -> None:
    model, twin = layer(), layer()
    share = OwnShare(dict(model.named_parameters()))
    assert share.gradient(scale=1.0) is None
    copied = copy.deepcopy(model)
    backward(model, 1.0), backward(twin, 1.0)
    share.release()
    assert torch.equal(model.weight.grad, twin.weight.grad)
    assert not any(p._backward_hooks for p in (*model.parameters(), *copied.parameters()))
