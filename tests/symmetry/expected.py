"""The symmetries that each architecture and each of its broken twins has, counted by hand."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eqtoolbox as eq
from eqtoolbox.weights.parameter import ParameterSymmetry
from tests.symmetry.architectures import (
    Block,
    ConvNext,
    Experts,
    Gated,
    Lora,
    Messages,
    Patches,
    Recurrent,
    Rotary,
    Skip,
    UNet,
    conv,
)

VECTORS, IMAGES, SERIES, TOKENS = (16, 6), (6, 3, 8, 8), (4, 5, 6), (2, 7)


def inputs(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if shape == TOKENS:
        return torch.randint(0, 20, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def found_in(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> list[ParameterSymmetry]:
    torch.manual_seed(0)
    model = make()
    x = inputs(shape)
    with torch.no_grad():
        y = model(x)
    generator = torch.Generator().manual_seed(2)
    return eq.weights.discover(
        model, (x, torch.randint(0, y.shape[-1], y.shape[:-1], generator=generator))
    )


def counts(found: list[ParameterSymmetry]) -> dict[str, int]:
    """Dimensions of the symmetries of the loss on its data."""
    total: Counter[str] = Counter()
    for symmetry in found:
        if symmetry.status != "broken" and not getattr(symmetry, "equivariant", False):
            total[symmetry.family] += symmetry.dimension
    return dict(total)


def equivariances(found: list[ParameterSymmetry]) -> dict[str, int]:
    """Dimensions of what moves outputs or inputs too."""
    total: Counter[str] = Counter()
    for symmetry in found:
        if symmetry.status != "broken" and getattr(symmetry, "equivariant", False):
            total[symmetry.family] += symmetry.dimension
    return dict(total)


L, S = nn.Linear, nn.Sequential
Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]  # model, inputs, group
EXPECTED: dict[str, Case] = {
    "relu": (
        lambda: S(L(6, 11), nn.ReLU(), L(11, 7), nn.ReLU(), L(7, 3)),
        VECTORS,
        {"rescale": 18, "translation": 8, "permutation": 16},
    ),
    "leaky without bias": (
        lambda: S(L(6, 11, bias=False), nn.LeakyReLU(), L(11, 3, bias=False)),
        VECTORS,
        {"rescale": 11, "translation": 11, "permutation": 10},
    ),
    "tanh": (
        lambda: S(L(6, 5), nn.Tanh(), L(5, 3)),
        VECTORS,
        {"translation": 6, "permutation": 4, "sign_flip": 5},
    ),
    "gelu": (
        lambda: S(L(6, 11), nn.GELU(), L(11, 3)),
        VECTORS,
        {"translation": 12, "permutation": 10},
    ),
    "deep linear": (
        lambda: S(L(6, 4), L(4, 5), L(5, 2)),
        VECTORS,
        {"general_linear": 41, "translation": 6, "bias_shift": 9},
    ),
    "vgg": (
        lambda: S(
            conv(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), conv(5, 4, 2), nn.ReLU(),
            nn.Flatten(), L(16, 6), nn.ReLU(), L(6, 3),
        ),
        IMAGES,
        {"rescale": 15, "translation": 7, "permutation": 12},
    ),
    "resnet": (
        lambda: resnet(),
        IMAGES,
        {"scale": 20, "gain_rescale": 12, "translation": 5, "permutation": 9, "sign_flip": 20},
    ),
    "depthwise": (
        lambda: S(
            conv(3, 6, 3), nn.ReLU(), conv(6, 6, 3, groups=6), nn.ReLU(), conv(6, 4, 1),
            nn.ReLU(), nn.Flatten(), L(64, 2),
        ),
        IMAGES,
        {"rescale": 16, "translation": 65, "permutation": 8},
    ),
    "convnext": (
        ConvNext,
        IMAGES,
        # stream: rescale, exchanges and signs of 4 channels; norm: 4 gains, 4 biases, its input's
        # scale, mean and sign; last bias of the block into the head's: 4; head: softmax
        {
            "rescale": 4, "gain_rescale": 4, "scale": 1, "translation": 6, "bias_shift": 8,
            "permutation": 10, "sign_flip": 9,
        },
    ),
    "skip": (Skip, VECTORS, {"rescale": 13, "translation": 9, "permutation": 11}),
    "unet": (UNet, IMAGES, {"rescale": 13, "translation": 5, "permutation": 10}),
    "gated": (
        Gated,
        VECTORS,
        {"gated_rescale": 9, "translation": 9, "permutation": 8, "sign_flip": 9},
    ),
    "convnext with layer scale": (
        lambda: ConvNext(scaled=True),
        IMAGES,
        # the scale is a gain between the block and the stream: 4, with its signs
        {
            "rescale": 4, "gain_rescale": 8, "scale": 1, "translation": 6, "bias_shift": 8,
            "permutation": 10, "sign_flip": 13,
        },
    ),
    "lora": (
        lambda: Lora(frozen=True),
        VECTORS,
        {"general_linear": 9, "translation": 9},
    ),
    "lora with its base": (
        Lora,
        VECTORS,
        {"general_linear": 9, "translation": 9, "permutation": 7, "sign_flip": 8},
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM),
        SERIES,
        # two biases that are added: 16 of them
        {"translation": 21, "permutation": 3, "sign_flip": 4},
    ),
    "gru": (
        lambda: Recurrent(nn.GRU),
        SERIES,
        # the candidate's two biases are told apart by the reset gate: 8 of 12
        {"translation": 13, "permutation": 3, "sign_flip": 4},
    ),
    "messages": (Messages, VECTORS, {"rescale": 9, "translation": 5, "permutation": 7}),
    "experts": (Experts, VECTORS, {"rescale": 12, "translation": 14, "permutation": 11}),
    "vision transformer": (
        Patches,
        IMAGES,
        {
            "general_linear": 64, "gain_rescale": 24, "scale": 1, "translation": 103,
            "bias_shift": 32, "permutation": 23, "sign_flip": 25,
        },
    ),
    "rotary": (
        Rotary,
        TOKENS,
        {
            "rope": 8, "general_linear": 32, "gated_rescale": 12, "gain_rescale": 48, "scale": 1,
            "translation": 16, "permutation": 29, "sign_flip": 76,
        },
    ),
}  # fmt: skip

LIMITED = lambda x: x.clamp(-0.5, 0.8)
TWINS: dict[str, Case] = {
    "relu: one GELU": (
        lambda: S(L(6, 11), nn.GELU(), L(11, 7), nn.ReLU(), L(7, 3)),
        VECTORS,
        {"rescale": 7, "translation": 8, "permutation": 16},
    ),
    "relu: clamp": (
        lambda: S(L(6, 11), nn.ReLU(), L(11, 7), nn.Hardtanh(0.0, 0.8), L(7, 3)),
        VECTORS,
        {"rescale": 11, "translation": 8, "permutation": 16},
    ),
    "leaky without bias: SELU": (
        lambda: S(L(6, 11, bias=False), nn.SELU(), L(11, 3, bias=False)),
        VECTORS,
        {"translation": 11, "permutation": 10},
    ),
    "tanh: softplus": (
        lambda: S(L(6, 5), nn.Softplus(), L(5, 3)),
        VECTORS,
        {"translation": 6, "permutation": 4},
    ),
    "deep linear: one tanh": (
        lambda: S(L(6, 4), nn.Tanh(), L(4, 5), L(5, 2)),
        VECTORS,
        {
            "general_linear": 25, "translation": 6, "bias_shift": 5, "permutation": 3,
            "sign_flip": 4,
        },
    ),
    "vgg: one SiLU": (
        lambda: S(
            conv(3, 5, 3), nn.SiLU(), nn.MaxPool2d(2), conv(5, 4, 2), nn.ReLU(),
            nn.Flatten(), L(16, 6), nn.ReLU(), L(6, 3),
        ),
        IMAGES,
        {"rescale": 10, "translation": 7, "permutation": 12},
    ),
    "resnet: GELU in a block": (
        lambda: resnet(inner=F.gelu),
        IMAGES,
        {"scale": 20, "gain_rescale": 8, "translation": 5, "permutation": 9, "sign_flip": 20},
    ),
    "resnet: a convolution read past its normalisation": (
        lambda: resnet(leak=0.3),
        IMAGES,
        {"scale": 16, "gain_rescale": 12, "translation": 5, "permutation": 9, "sign_flip": 16},
    ),
    "depthwise: one GELU": (
        lambda: S(
            conv(3, 6, 3), nn.ReLU(), conv(6, 6, 3, groups=6), nn.GELU(), conv(6, 4, 1),
            nn.ReLU(), nn.Flatten(), L(64, 2),
        ),
        IMAGES,
        {"rescale": 10, "translation": 65, "permutation": 8},
    ),
    "convnext: GELU on the stream": (
        lambda: ConvNext(pooled=F.gelu),
        IMAGES,
        # no rescale and no sign of the stream, and its last bias reaches no other
        {
            "gain_rescale": 4, "scale": 1, "translation": 6, "bias_shift": 4, "permutation": 10,
            "sign_flip": 5,
        },
    ),
    "skip: GELU in the branch": (
        lambda: Skip(inner=F.gelu),
        VECTORS,
        {"rescale": 8, "translation": 9, "permutation": 11},
    ),
    "skip: clamp on the stream": (
        lambda: Skip(outer=LIMITED),
        VECTORS,
        {"rescale": 5, "translation": 9, "permutation": 11},
    ),
    "unet: GELU after the concatenation": (
        lambda: UNet(last=F.gelu),
        IMAGES,
        {"rescale": 9, "translation": 5, "permutation": 10},
    ),
    "gated: clamp on what is gated": (
        lambda: Gated(LIMITED),
        VECTORS,
        {"translation": 9, "permutation": 8},
    ),
    "lora with its base: GELU between": (
        lambda: Lora(F.gelu),
        VECTORS,
        {"translation": 9, "permutation": 9, "sign_flip": 8},
    ),
    "lstm: clamp on the state that is read": (
        lambda: Recurrent(nn.LSTM, lambda h: h.clamp(-0.1, 0.15)),
        SERIES,
        {"translation": 21, "permutation": 3},
    ),
    "gru: GELU on the state that is read": (
        lambda: Recurrent(nn.GRU, F.gelu),
        SERIES,
        {"translation": 13, "permutation": 3},
    ),
    "messages: one GELU": (
        lambda: Messages(F.gelu),
        VECTORS,
        {"rescale": 4, "translation": 5, "permutation": 7},
    ),
    "experts: GELU": (
        lambda: Experts(F.gelu),
        VECTORS,
        {"translation": 14, "permutation": 11},
    ),
    "experts: told apart by weights": (
        lambda: Experts(uneven=0.5),
        VECTORS,
        {"rescale": 12, "translation": 14, "permutation": 9},
    ),
    "vision transformer: softplus for the last normalisation": (
        lambda: Patches(nn.Softplus()),
        IMAGES,
        # lost: the last gain and its bias, the stream's scale, mean and sign; the tables' common
        # constant is no translation of each any more
        {
            "general_linear": 64, "gain_rescale": 16, "translation": 25, "bias_shift": 24,
            "permutation": 23, "sign_flip": 16,
        },
    ),
    "rotary: clamp on what is gated": (
        lambda: Rotary(gated=LIMITED),
        TOKENS,
        {
            "rope": 8, "general_linear": 32, "gain_rescale": 48, "scale": 1, "translation": 16,
            "permutation": 29, "sign_flip": 64,
        },
    ),
    "rotary: stream read past the last normalisation": (
        lambda: Rotary(leak=0.1),
        TOKENS,
        # of the last gains only all together with the stream and against the head
        {
            "rope": 8, "general_linear": 32, "gated_rescale": 12, "gain_rescale": 33,
            "translation": 16, "permutation": 29, "sign_flip": 60,
        },
    ),
}  # fmt: skip


def resnet(**spoilt: object) -> nn.Module:
    """Stem, two blocks (the first may be spoilt), pooling, head."""
    return S(
        conv(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4, eps=1e-14), nn.ReLU(),
        Block(4, **spoilt), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 3),
    )  # type: ignore[arg-type]  # fmt: skip
