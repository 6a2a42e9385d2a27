"""Layers in other libraries' formulas have the same group: kernels (in, out), channels last."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eqtoolbox as eq
from tests.symmetry.expected import IMAGES, VECTORS, counts, equivariances, inputs


class Dense(nn.Module):
    """x @ kernel + bias."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(before, after) / before**0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.matmul(x, self.kernel), self.bias)


class Batch(nn.Module):
    """x inv + (beta - mean inv), inv = gamma / sqrt(var + eps), over all axes but the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(x.dim() - 1))
        variance, mean = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
        shape = (1,) * len(axes) + (-1,)
        inverse = torch.rsqrt(variance + 1e-14) * self.gamma.reshape(shape)
        return x * inverse + (self.beta.reshape(shape) - mean * inverse)


class ChannelsLast(nn.Module):
    """Convolution by a kernel (height, width, in, out), with the axes moved for it and back."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.2 * torch.randn(3, 3, 3, 4))
        self.bias = nn.Parameter(0.1 * torch.randn(4))
        self.head = Dense(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        y = F.conv2d(x.permute(0, 3, 1, 2), self.kernel.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)
        return self.head(torch.relu(torch.add(y, self.bias.reshape(1, 1, 1, -1))).mean((1, 2)))


def found_in(model: nn.Module, shape: tuple[int, ...]) -> list:
    return eq.weights.discover(model, (inputs(shape), torch.arange(shape[0]) % 3))


def test_kernels_that_multiply_from_the_right_have_the_group_of_linear_layers() -> None:
    torch.manual_seed(0)
    theirs = found_in(nn.Sequential(Dense(6, 8), nn.ReLU(), Dense(8, 3)), VECTORS)
    ours = found_in(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), VECTORS)
    assert counts(theirs) == counts(ours) == {"rescale": 8, "translation": 9, "permutation": 7}
    same = ("head_scale", "head_shift", "head_rotation")
    assert all(equivariances(theirs)[k] == equivariances(ours)[k] for k in same)


def test_kernels_from_the_right_shift_biases_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    found = found_in(nn.Sequential(Dense(6, 4), Dense(4, 5), Dense(5, 3)), VECTORS)
    assert counts(found) == {"general_linear": 41, "translation": 6, "bias_shift": 9}


def test_channels_last_convolutions_rescale_per_channel() -> None:
    torch.manual_seed(0)
    found = counts(found_in(ChannelsLast(), IMAGES))
    assert found == {"rescale": 4, "translation": 5, "permutation": 3}


def test_a_written_out_batch_normalisation_has_scales_and_gains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Dense(6, 5), Batch(5), nn.ReLU(), Dense(5, 3))
    found = counts(found_in(model, VECTORS))
    assert found["scale"] == 5 and found["gain_rescale"] == 5 and "gated_rescale" not in found
    assert found["translation"] == 5 + 6  # biases before it; the head
