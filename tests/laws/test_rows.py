"""Every row of the catalogue holds on a network that has it and fails on a twin that lacks it.

A twin has the same parameters and differs in one operation. The claim found on the network is
tested on the twin, and discovery must not find it there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import eqtoolbox as eq
from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry
from tests.symmetry.architectures import Experts

Map = Callable[[Tensor], Tensor]
HELD, FAILED = 1e-9, 1e-4


class Chain(nn.Module):
    """Linear layers with a map after each."""

    def __init__(self, *maps: Map, widths: tuple[int, ...] = (6, 8, 3), bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, m, bias=bias) for n, m in pairwise(widths)])
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(x)
            x = self.maps[k](x) if k < len(self.maps) else x
        return x


class Normed(nn.Module):
    """A convolution, a normalisation, ReLU, and a linear head; maps before and after the norm."""

    def __init__(self, before: Map = lambda x: x, after: Map = torch.relu) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-25)
        self.before, self.after, self.head = before, after, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.norm(self.before(self.conv(x))))
        return self.head(F.max_pool2d(x, 3).flatten(1))


class Layer(nn.Module):
    """A linear layer into a layer normalisation with gain, read linearly or not."""

    def __init__(self, norm: Map | None = None, read: Map = lambda x: x) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.norm = norm or (lambda x: F.layer_norm(x, (8,), eps=1e-25))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)) * self.gain + self.shift
        return self.head(torch.tanh(self.b(self.read(x))))


class WeightNormed(nn.Module):
    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.ones(8, 1))
        self.head, self.beside = nn.Linear(8, 3), beside

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        extra = 0.1 * self.v if self.beside else 0.0
        return self.head(torch.tanh(x @ (weight + extra).T))


class Attention(nn.Module):
    """4 heads on 2 keys, or on as many, with biases; maps on q, k, v and on the heads."""

    def __init__(
        self,
        q: Map = lambda x: x,
        k: Map = lambda x: x,
        v: Map = lambda x: x,
        heads: Map = lambda x: x,
        groups: int = 2,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.maps, self.heads, self.rotary = groups, (q, k, v), heads, rotary
        self.q, self.k = nn.Linear(8, 16), nn.Linear(8, 4 * groups)
        self.v, self.o, self.head = nn.Linear(8, 4 * groups), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        cut = lambda y, n: y.view(batch, length, n, 4).transpose(1, 2)
        counts = (4, self.groups, self.groups)
        q, k, v = (
            f(cut(layer(x), n))
            for f, layer, n in zip(self.maps, (self.q, self.k, self.v), counts, strict=True)
        )
        if self.rotary:
            q, k = turned(q), turned(k)
        k, v = (y.repeat_interleave(4 // self.groups, 1) for y in (k, v))
        y = self.heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(torch.tanh(x + self.o(y.transpose(1, 2).reshape(batch, length, 16))))


def turned(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = angle.cos().to(x).repeat(1, 2), angle.sin().to(x).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Adapted(nn.Module):
    def __init__(self, between: Map = lambda x: x) -> None:
        super().__init__()
        self.w, self.h, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between
        self.a, self.b = nn.Linear(6, 3, bias=False), nn.Linear(3, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.w(x) + self.b(self.between(self.a(x)))))


class Gate(nn.Module):
    def __init__(self, up: Map = lambda x: x) -> None:
        super().__init__()
        self.g, self.u, self.d = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 3)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.silu(self.g(x)) * self.up(self.u(x)))


class Stream(nn.Module):
    """A residual stream with an RMSNorm: the sign of every channel is free."""

    def __init__(self, read: Map = lambda x: x) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.gain, self.head, self.read = nn.Parameter(torch.ones(8)), nn.Linear(8, 3), read

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(torch.tanh(F.rms_norm(x, (8,), eps=1e-25) * self.gain))
        return self.head(self.read(x))


class Cell(nn.Module):
    """A recurrent layer, its state read as it is or told apart unit by unit."""

    def __init__(self, read: Map = lambda x: x) -> None:
        super().__init__()
        self.r, self.h, self.read = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3), read

    def forward(self, x: Tensor) -> Tensor:
        states = [self.r(x[:, :2])[0][:, -1]]
        hidden = self.read(states[0])[None]
        return self.h(self.r(x[:, 2:], (hidden.contiguous(), hidden.contiguous()))[0][:, -1])


class Ranked(nn.Module):
    """Experts of which each has a fixed worth beside the router's, or none."""

    def __init__(self, ranked: bool = False) -> None:
        super().__init__()
        self.body, self.ranked = Experts(), ranked

    def forward(self, x: Tensor) -> Tensor:
        body = self.body
        values = body.g(x).softmax(-1)
        made = [
            down(torch.relu(up(x))) * (1 + k * 0.3 * self.ranked)
            for k, (up, down) in enumerate(zip(body.up, body.down, strict=True))
        ]
        y = sum(values[:, k, None] * z for k, z in enumerate(made))
        return body.h(torch.tanh(x + y))


def told_apart(axis: int) -> Map:
    """A fixed factor of its own for every index of an axis."""

    def factor(x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        return x * torch.linspace(0.5, 1.5, x.shape[axis]).to(x).reshape(shape)

    return factor


@dataclass(frozen=True)
class Row:
    family: str
    parameter: str  # that the symmetry moves
    holds: Callable[[], nn.Module]
    fails: Callable[[], nn.Module]
    data: str = "vectors"


RELU, TANH, GELU = torch.relu, torch.tanh, F.gelu
nothing: Map = lambda x: x
rms8: Map = lambda x: F.rms_norm(x, (8,), eps=1e-25)
rms4: Map = lambda x: F.rms_norm(x, (4,), eps=1e-2)

ROWS: dict[str, Row] = {
    "rescale": Row("rescale", "layers.0.weight", lambda: Chain(RELU), lambda: Chain(GELU)),
    "scale, batch norm": Row(
        "scale", "conv.weight", Normed, lambda: Normed(lambda x: x.clamp(-0.5, 0.5)), "images"
    ),
    "scale, layer norm": Row("scale", "a.weight", Layer, lambda: Layer(torch.tanh)),
    "scale, weight norm": Row(
        "scale", "v", lambda: WeightNormed(False), lambda: WeightNormed(True)
    ),
    "translation, softmax": Row(
        "translation",
        "layers.1.weight",
        lambda: Chain(TANH),
        lambda: Chain(TANH, lambda y: y - 0.1 * y.square()),
    ),
    "translation, layer norm": Row("translation", "a.weight", Layer, lambda: Layer(rms8)),
    "translation, bias before batch norm": Row(
        "translation", "conv.bias", Normed, lambda: Normed(RELU), "images"
    ),
    "translation, key bias": Row(
        "translation", "k.bias", Attention, lambda: Attention(k=RELU), "series"
    ),
    "bias shift": Row(
        "bias_shift",
        "v.bias",
        lambda: Attention(groups=4),
        lambda: Attention(v=RELU, groups=4),
        "series",
    ),
    "general linear, pair": Row(
        "general_linear",
        "layers.0.weight",
        lambda: Chain(widths=(6, 4, 5)),
        lambda: Chain(TANH, widths=(6, 4, 5)),
    ),
    "general linear, query and key": Row(
        "general_linear",
        "q.weight",
        lambda: Attention(groups=4),
        lambda: Attention(q=TANH, groups=4),
        "series",
    ),
    "general linear, value and output": Row(
        "general_linear",
        "o.weight",
        lambda: Attention(groups=4),
        lambda: Attention(heads=TANH, groups=4),
        "series",
    ),
    "general linear, adapter": Row("general_linear", "a.weight", Adapted, lambda: Adapted(TANH)),
    "general linear, grouped": Row(
        "general_linear", "k.weight", Attention, lambda: Attention(k=rms4), "series"
    ),
    "rope": Row(
        "rope",
        "q.weight",
        lambda: Attention(rotary=True),
        lambda: Attention(q=TANH, rotary=True),
        "series",
    ),
    "gated rescale": Row("gated_rescale", "u.weight", Gate, lambda: Gate(TANH)),
    "gain rescale": Row("gain_rescale", "gain", Layer, lambda: Layer(read=TANH)),
    "homogeneity": Row(
        "homogeneity",
        "layers.0.weight",
        lambda: Chain(RELU, bias=False),
        lambda: Chain(GELU, bias=False),
    ),
    "head scale": Row(
        "head_scale", "layers.1.weight", lambda: Chain(TANH), lambda: Chain(TANH, TANH)
    ),
    "head shift": Row(
        "head_shift", "layers.1.bias", lambda: Chain(TANH), lambda: Chain(TANH, TANH)
    ),
    "head rotation": Row(
        "head_rotation", "layers.1.weight", lambda: Chain(TANH), lambda: Chain(TANH, TANH)
    ),
    "permutation, units": Row(
        "permutation",
        "layers.0.weight",
        lambda: Chain(GELU),
        lambda: Chain(lambda x: F.gelu(told_apart(1)(x))),
    ),
    "permutation, channels through batch norm": Row(
        "permutation",
        "conv.weight",
        Normed,
        lambda: Normed(after=lambda x: told_apart(1)(x).relu().tanh()),
        "images",
    ),
    "permutation, heads": Row(
        "permutation",
        "o.weight",
        lambda: Attention(groups=4),
        lambda: Attention(groups=4, heads=told_apart(1)),
        "series",
    ),
    "permutation, grouped queries": Row(
        "permutation", "q.weight", Attention, lambda: Attention(q=told_apart(1)), "series"
    ),
    "permutation, experts": Row(
        "permutation", "body.g.weight", lambda: Ranked(), lambda: Ranked(ranked=True)
    ),
    "permutation, recurrent units": Row(
        "permutation", "r.weight_hh_l0", Cell, lambda: Cell(told_apart(1)), "series"
    ),
    "sign flip, odd units": Row(
        "sign_flip", "layers.0.weight", lambda: Chain(TANH), lambda: Chain(GELU)
    ),
    "sign flip, channels through batch norm": Row(
        "sign_flip", "conv.weight", Normed, lambda: Normed(RELU), "images"
    ),
    "sign flip, gates": Row("sign_flip", "u.weight", Gate, lambda: Gate(RELU)),
    "sign flip, residual stream": Row("sign_flip", "a.weight", Stream, lambda: Stream(RELU)),
    "input rotation": Row(
        "input_rotation",
        "layers.0.weight",
        lambda: Chain(TANH),
        lambda: Squared(),
    ),
}


class Squared(Chain):
    """Inputs are bent before the first layer sees them."""

    def __init__(self) -> None:
        super().__init__(TANH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * x.square())


def inputs(kind: str) -> Tensor:
    shapes = {"vectors": (16, 6), "images": (12, 1, 8, 8), "series": (4, 5, 8)}
    return torch.randn(shapes[kind], generator=torch.Generator().manual_seed(1))


def made(row: Row, which: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = (row.holds if which == "holds" else row.fails)()
    x = inputs(row.data)
    if isinstance(model, Cell):
        x = x[..., :6]
    with torch.no_grad():
        y = model(x)
    generator = torch.Generator().manual_seed(2)
    return model, (x, torch.randint(0, y.shape[-1], y.shape[:-1], generator=generator))


@functools.cache
def found(name: str, which: str) -> tuple[ParameterSymmetry, ...]:
    model, batch = made(ROWS[name], which)
    return tuple(eq.weights.discover(model, batch))


def claims(name: str, which: str) -> list[ParameterSymmetry]:
    """Verified symmetries of the row's family that move its parameter."""
    row = ROWS[name]
    return [
        s
        for s in found(name, which)
        if s.family == row.family and s.status == "verified" and row.parameter in s.names
    ]


def defect(symmetry: ParameterSymmetry, name: str, which: str) -> float:
    """How far the claim is from the truth on a network, at random parameters."""
    model, (x, y) = made(ROWS[name], which)
    model, x = model.double(), x.double()
    generator = torch.Generator().manual_seed(3)
    params = {
        n: p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def run(p: dict[str, Tensor], x: Tensor = x) -> Tensor:
        return functional_call(model, {**p, **{n: b.clone() for n, b in buffers.items()}}, (x,))

    loss = lambda p, x=x: F.cross_entropy(run(p, x).flatten(0, -2), y.flatten())
    if isinstance(symmetry, DiscreteSymmetry):
        moves = [symmetry.draw(generator), functools.partial(symmetry.element, which=0)]
        there = [float(loss({**params, **m(params)})) for m in moves]
        return max(abs(v / float(loss(params)) - 1) for v in there)
    assert isinstance(symmetry, ContinuousSymmetry)
    c = symmetry.strength * torch.randn(symmetry.dimension, generator=generator).double()
    there = {**params, **symmetry.transform(params, c)}
    if symmetry.joint:
        moved = symmetry.transform_inputs(x, c)
        return abs(float(loss(there, moved)) / float(loss(params)) - 1)
    if symmetry.equivariant:
        expected = symmetry.transform_outputs(run(params), c)
        return float((run(there) - expected).norm() / expected.norm())
    order_0 = abs(float(loss(there)) / float(loss(params)) - 1)
    return max(order_0, slope(symmetry, loss, params, c))


def slope(
    symmetry: ContinuousSymmetry, loss: Callable, params: dict[str, Tensor], c: Tensor
) -> float:
    """|g . K| / (|g| |K|), g the whole gradient."""
    g = torch.func.grad(loss)(params)
    K = symmetry.tangent(params, c)
    size = lambda v: sum(float(t.square().sum()) for t in v.values()) ** 0.5
    return abs(sum(float((g[n] * k).sum()) for n, k in K.items())) / (size(g) * size(K))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_holds_where_it_should_and_fails_on_its_twin(name: str) -> None:
    claimed = claims(name, "holds")
    assert claimed, "the network has this symmetry"
    for symmetry in claimed:
        assert defect(symmetry, name, "holds") < HELD, symmetry.name
    assert any(defect(symmetry, name, "fails") > FAILED for symmetry in claimed)
    left = {s.name: s.dimension for s in claims(name, "fails")}
    gone = [s for s in claimed if left.get(s.name, 0) < s.dimension]
    assert gone, "the twin has it no more, or less of it"
    for symmetry in gone:
        assert defect(symmetry, name, "fails") > FAILED, symmetry.name


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == {
        "rescale", "scale", "translation", "bias_shift", "general_linear", "rope",
        "gated_rescale", "gain_rescale", "homogeneity", "head_scale", "head_shift",
        "head_rotation", "permutation", "sign_flip", "input_rotation",
    }  # fmt: skip
