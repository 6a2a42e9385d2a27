"""Discovery finds the true group on networks of many kinds, and nothing on their broken twins."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, ParameterSymmetry
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
    return eq.symmetry.discover(
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
EXPECTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
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
        lambda: S(
            conv(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4, eps=1e-14), nn.ReLU(), Block(4),
            Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 3),
        ),
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
    "lora": (
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
            "bias_shift": 24, "permutation": 23, "sign_flip": 25,
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


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_group_has_the_expected_dimensions(kind: str) -> None:
    make, shape, expected = EXPECTED[kind]
    found = found_in(make, shape)
    assert counts(found) == expected
    exact = [s for s in found if s.status == "verified"]
    assert all(s.residual <= 1e-10 for s in exact)
    assert {s.family for s in found if s.status == "approximate"} <= {"scale", "gain_rescale"}


def tangents(found: list[ParameterSymmetry], params: dict[str, Tensor]) -> Tensor:
    rows = []
    for symmetry in found:
        if not isinstance(symmetry, ContinuousSymmetry) or symmetry.status == "broken":
            continue
        for unit in torch.eye(symmetry.dimension, dtype=torch.float64):
            moved = symmetry.tangent(params, unit)
            parts = [moved.get(n, torch.zeros_like(p)).reshape(-1) for n, p in params.items()]
            rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "kind",
    ["relu", "gated", "resnet", "skip", "lora", "messages", "unet", "lstm", "vision transformer"],
)
def test_generators_are_independent(kind: str) -> None:
    make, shape, _ = EXPECTED[kind]
    found = [s for s in found_in(make, shape) if not getattr(s, "equivariant", False)]
    torch.manual_seed(0)
    params = {n: p.detach().double() for n, p in make().named_parameters()}
    params = {n: p + 0.1 * torch.randn_like(p) for n, p in params.items()}
    rows = tangents(found, params)
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert int(torch.linalg.matrix_rank(rows, rtol=1e-9)) == len(rows)


def test_the_nullspace_of_sample_jacobians_has_the_dimension_found() -> None:
    """Independent count: directions that change no output, for one hidden layer of ReLU."""
    torch.manual_seed(0)
    model = S(L(3, 4), nn.ReLU(), L(4, 2)).double()
    x = 3 * torch.randn(400, 3, dtype=torch.float64)
    params = {n: p.detach() for n, p in model.named_parameters()}
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(params)
    matrix = torch.cat([j.reshape(800, -1) for j in jacobians.values()], dim=1)
    flat = matrix.shape[1] - int(torch.linalg.matrix_rank(matrix, rtol=1e-10))
    found = eq.symmetry.discover(model, (x, torch.randn(400, 2)))
    assert counts(found)["rescale"] == flat == 4


class Twin(nn.Module):
    """A ReLU pair spoilt in one place."""

    def __init__(self, spoil: Callable[[Tensor], Tensor], extra: bool = False) -> None:
        super().__init__()
        self.a, self.c, self.spoil, self.extra = L(6, 5), L(5, 5), spoil, extra

    def forward(self, x: Tensor) -> Tensor:
        h = self.spoil(self.a(x))
        return self.c(h) + torch.tanh(h) if self.extra else self.c(h)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Twin(nn.functional.gelu),
        lambda: Twin(lambda h: h.clamp(0, 0.5)),
        lambda: Twin(lambda h: torch.relu(h) + 1),
        lambda: Twin(lambda h: torch.relu(h), extra=True),
        lambda: Twin(lambda h: torch.relu(h) * torch.sigmoid(h)),
        lambda: Twin(lambda h: torch.relu(h - 0.1 * h.detach().exp())),
        lambda: Twin(lambda h: torch.special.i0(h)),
    ],
    ids=["gelu", "clamp", "added constant", "extra consumer", "self gate", "exp", "no rule"],
)
def test_a_broken_twin_has_no_continuous_symmetry_of_its_units(
    make: Callable[[], nn.Module],
) -> None:
    assert set(counts(found_in(make, VECTORS))) <= {"translation", "permutation"}
    assert counts(found_in(lambda: Twin(torch.relu), VECTORS))["rescale"] == 5


def test_rotary_positions_reduce_the_general_linear_group_of_query_and_key() -> None:
    plain = counts(found_in(lambda: Rotary(rotary=False), TOKENS))
    turned = counts(found_in(Rotary, TOKENS))
    assert plain["general_linear"] == 64 and "rope" not in plain
    assert turned["general_linear"] == 32 and turned["rope"] == 8


def test_discovery_leaves_the_model_and_the_random_stream_alone() -> None:
    model = S(conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), L(144, 3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    eq.symmetry.discover(model, (inputs(IMAGES), torch.arange(6) % 3))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_lazy_parameters_and_a_batch_of_one_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="run the model once"):
        eq.symmetry.discover(nn.LazyLinear(3), (torch.ones(2, 4), torch.tensor([0, 1])))
    norm = S(L(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="could not be analysed on this batch"):
        eq.symmetry.discover(norm, (torch.ones(1, 4), torch.tensor([0])))
    with pytest.raises(ValueError, match="no trainable parameters"):
        eq.symmetry.discover(nn.ReLU(), (torch.ones(1, 4), torch.tensor([0])))
