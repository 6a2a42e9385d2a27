"""The first broken layer and its cause, planted one by one; assertions for test suites."""

import re

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions import quarter_turn, roll, trivial
from eqtoolbox.symmetry.culprit import better_output_action, culprit
from eqtoolbox.symmetry.finite import Symmetric
from eqtoolbox.symmetry.group import Cyclic, CyclicTranslation
from eqtoolbox.symmetry.linear import axial_vectors, vectors
from eqtoolbox.symmetry.matrices import O3
from eqtoolbox.symmetry.permuting import Permute
from eqtoolbox.testing import assert_equivariant

TURN = Equivariance(Cyclic(4), quarter_turn, trivial)
ROLL = Equivariance(CyclicTranslation(8), roll, trivial)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tied(inputs: int, outputs: int, **options) -> nn.Conv2d:
    """A convolution whose kernel equals its quarter turns."""
    conv = nn.Conv2d(inputs, outputs, 3, **options)
    kernel = sum(torch.rot90(conv.weight.detach(), k, (-2, -1)) for k in range(4)) / 4
    conv.weight = nn.Parameter(kernel)
    return conv


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Positions(nn.Module):
    """Adds a positional embedding to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers, Pooled()).eval()


@pytest.mark.parametrize(
    ("model", "size", "claim", "layer", "cause"),
    [
        (lambda: network(tied(1, 3), tied(3, 3, stride=2, padding=1)), 10, TURN, "1",
         r"stride 2 on size 8 leaves 1 .* use size 7"),
        (lambda: network(tied(1, 3), nn.MaxPool2d(2)), 9, TURN, "1", "MaxPool2d of kernel 2"),
        (lambda: network(tied(1, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), 8, TURN, "2",
         "not symmetric: average it"),
        (lambda: network(nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
                         nn.Conv2d(3, 3, 3, padding=1)), 8, ROLL, "1", "pads with zeros"),
        (lambda: network(nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
                         nn.AvgPool2d(2)), 8, ROLL, "1", "multiples of 2"),
        (lambda: network(tied(1, 3), nn.ReLU(), nn.Dropout(0.5)).train(), 8, TURN, "2",
         "random: put the model in eval mode"),
    ],
)  # fmt: skip
def test_the_planted_layer_is_named_with_its_cause(model, size, claim, layer, cause) -> None:
    found = culprit(model(), normal(4, 1, size, size), claim)
    assert found.layer == layer
    assert re.search(cause, found.cause)


def test_no_culprit_in_a_network_that_obeys() -> None:
    model = network(tied(1, 3), nn.ReLU(), nn.MaxPool2d(2))
    found = culprit(model, normal(4, 1, 8, 8), TURN)
    assert (found.layer, found.cause) == (None, "")
    assert [layer.layer for layer in found.layers] == ["0", "1", "2", "3"]
    assert_equivariant(model, normal(4, 1, 8, 8), TURN)


def test_a_positional_embedding_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Positions(), nn.Linear(4, 4))
    found = culprit(model, normal(2, 6, 4), Equivariance(Symmetric(6), Permute(-2), Permute(-2)))
    assert found.layer == "1"
    assert "positional embedding" in found.cause


class Moment(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cross(x[:, 0], x[:, 1])


def test_a_wrong_output_action_is_named() -> None:
    claim = Equivariance(O3(), vectors, vectors)
    found = culprit(Moment(), normal(8, 2, 3), claim)
    assert "it holds for axial_vectors; check R" in found.cause
    right = Equivariance(O3(), vectors, axial_vectors)
    assert culprit(Moment(), normal(8, 2, 3), right).cause == ""
    assert better_output_action(lambda x: x.tanh().sum(1), normal(8, 2, 3), claim) == ""


def test_the_model_is_left_as_it_was() -> None:
    model = network(tied(1, 3), nn.BatchNorm2d(3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    culprit(model, normal(4, 1, 8, 8), TURN)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_assertions_have_no_absolute_tolerance() -> None:
    claim, weight = Equivariance(O3(), vectors, vectors), normal(3, 3)
    for factor in (1e-4, 1.0, 1e4):
        assert_equivariant(lambda x, c=factor: c * x, normal(8, 3), claim)
        with pytest.raises(AssertionError, match=r"o3 violated: relative error .* worst"):
            assert_equivariant(lambda x, c=factor: c * x @ weight, normal(8, 3), claim)


def test_a_failed_assertion_names_the_layer() -> None:
    model = network(tied(1, 3), nn.MaxPool2d(2))
    with pytest.raises(AssertionError, match="first broken at 1: MaxPool2d"):
        assert_equivariant(model, normal(4, 1, 9, 9), TURN)
    assert assert_equivariant(model, normal(4, 1, 9, 9), TURN, tolerance=2.0).verdict == "violated"
