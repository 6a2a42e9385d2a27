"""Group elements that share a forward: where samples are treated one by one, and only there."""

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.probes.prediction import predicting
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.symmetry import together
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.floor import Noise
from eqtoolbox.symmetry.groups.group import Cyclic
from tests.symmetry.test_equivariance import normal

TURN = Equivariance(Cyclic(4), quarter_turn, trivial)
SHAPE = (16, 2, 5, 5)


class Counted:
    """A function that remembers how many samples it was called with."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function, self.sizes = function, list[int]()

    def __call__(self, x: Tensor) -> Any:
        self.sizes.append(len(x))
        return self.function(x)


def network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3)
    return nn.Sequential(conv, *more, nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()


def batch_statistics() -> nn.Module:
    return network(nn.BatchNorm2d(3, momentum=0.0))


def contrast(x: Tensor) -> Tensor:
    """Similarity with all others, as in a contrastive loss."""
    y = x.flatten(1)[:, :6]
    return torch.cat([(y @ y.mT).softmax(1) @ y, y], 1)


def running_sum(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :6].cumsum(0)


def remaining_sum(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :6].flip(0).cumsum(0).flip(0)


def limited_capacity(x: Tensor) -> Tensor:
    """Experts that drop what comes after their places are taken."""
    y = x.flatten(1)[:, :6].clone()
    y[SHAPE[0] :] = 0.0
    return y


def one_shape(x: Tensor) -> Tensor:
    assert x.shape[0] in (2, SHAPE[0])
    return x.flatten(1)[:, :6].tanh()


DEPENDENT: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "batch statistics": batch_statistics,
    "contrast": lambda: contrast,
    "running sum": lambda: running_sum,
    "remaining sum": lambda: remaining_sum,
    "limited capacity": lambda: limited_capacity,
    "one shape": lambda: one_shape,
}


def apart(one: Any, two: Any) -> float:
    """Largest relative difference of all numbers of two results."""
    pairs = zip(astuple(one), astuple(two), strict=True)
    return max(
        abs(a - b) / max(abs(a), 1e-3)
        for a, b in pairs
        if isinstance(a, float) and a == a and isinstance(b, float)
    )


def alone(monkeypatch: pytest.MonkeyPatch, function: Any, x: Tensor) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(together, "NUMBERS", 0)
        return equivariance_error(function, x, TURN)


def test_elements_share_a_forward_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function, x = Counted(network()), normal(*SHAPE)
    found = equivariance_error(function, x, TURN)
    assert function.sizes == [16, 2, 3 * 16 + 2]
    function.sizes.clear()
    other = alone(monkeypatch, function, x)
    assert function.sizes == [16, 2, 16, 16, 16]
    assert found.verdict == other.verdict == "violated"
    assert apart(found, other) < 1e-12


@pytest.mark.parametrize("kind", DEPENDENT)
def test_what_depends_on_the_batch_is_evaluated_one_by_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(*SHAPE)
    function = Counted(DEPENDENT[kind]())
    found = equivariance_error(function, x, TURN)
    assert function.sizes.count(16) >= 1 + 3
    assert found == alone(monkeypatch, DEPENDENT[kind](), x)


@pytest.mark.parametrize("kind", ["batch statistics", "contrast", "running sum"])
def test_joined_without_a_look_they_are_measured_wrong(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    x = normal(*SHAPE)
    right = alone(monkeypatch, DEPENDENT[kind](), x)
    look = together.Together.__init__
    blind = lambda self, f, x, y, seen: look(
        self, f, x, y, Noise(answer=seen.answer, note="", alone=True, numbers=seen.numbers)
    )
    monkeypatch.setattr(together.Together, "__init__", blind)
    monkeypatch.setattr(together, "noisy", lambda eps: float("inf"))
    assert apart(right, equivariance_error(DEPENDENT[kind](), x, TURN)) > 1e-3


def test_what_makes_many_numbers_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    function, x = Counted(network()), normal(*SHAPE)
    equivariance_error(function, x, TURN)
    made = 16 * (2 * 27 + 27 + 2 * 4 + 4)  # at least: each result counts
    for most, largest in ((made, 16), (10 * made, 3 * 16 + 2)):
        monkeypatch.setattr(together, "NUMBERS", most)
        function.sizes.clear()
        equivariance_error(function, x, TURN)
        assert max(function.sizes) == largest


class Masked(nn.Module):
    """A model with an argument beside the one that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(50, 3).double()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(x.flatten(1) * mask[:, None])


def test_other_arguments_of_the_model_go_along() -> None:
    torch.manual_seed(0)
    model, x, mask = Masked(), normal(*SHAPE), torch.rand(16).double()
    objective = Objective(
        model=model,
        loss_fn=lambda m, b: m(*b).square().mean(),
        batch=(x, mask),
        random=RandomState(),
        buffers={},
    )
    sizes: list[int] = []  # replays keep what model and loss can reach

    def body(f: Any) -> Any:
        function = Counted(f.of_inputs)
        found = equivariance_error(function, x, TURN, outputs=f.outputs)
        sizes.extend(function.sizes)
        return found

    found = predicting(objective, dict(model.named_parameters()), body)
    assert max(sizes) == 3 * 16 + 2
    assert apart(found, equivariance_error(lambda x: model(x, mask[: len(x)]), x, TURN)) < 1e-12
