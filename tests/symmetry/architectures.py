"""Small networks of the kinds that people train, each with a place where it can be spoilt."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]


def nothing(x: Tensor) -> Tensor:
    return x


class Skip(nn.Module):
    def __init__(self, inner: Map = torch.relu, outer: Map = torch.relu) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
        self.c, self.h = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x))
        return self.h(self.outer(z + self.c(self.inner(self.b(z)))))


class Gated(nn.Module):
    def __init__(self, gated: Map = nothing) -> None:
        super().__init__()
        self.gated = gated
        self.g, self.u = nn.Linear(6, 9, bias=False), nn.Linear(6, 9, bias=False)
        self.d = nn.Linear(9, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.silu(self.g(x)) * self.gated(self.u(x)))


class ConvNext(nn.Module):
    """Depthwise convolution, layer norm over channels, GELU bottleneck, layer scale, skip."""

    def __init__(self, pooled: Map = nothing, scaled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.scale = nn.Parameter(torch.rand(4) + 0.5) if scaled else 1.0
        self.stem, self.d = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 3, 1, 1, groups=4)
        self.n, self.a, self.b = nn.LayerNorm(4, eps=1e-14), nn.Linear(4, 8), nn.Linear(8, 4)
        self.h = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.n(self.d(x).permute(0, 2, 3, 1))
        y = self.scale * self.b(F.gelu(self.a(y)))
        return self.h(self.pooled((x + y.permute(0, 3, 1, 2)).mean((2, 3))))


class Block(nn.Module):
    def __init__(self, channels: int, inner: Map = F.relu, leak: float = 0.0) -> None:
        super().__init__()
        self.inner, self.leak = inner, leak  # what reaches the sum past the second normalisation
        self.c1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.b1 = nn.BatchNorm2d(channels, eps=1e-14)
        self.c2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(channels, eps=1e-14)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c2(self.inner(self.b1(self.c1(x))))
        z = x + self.b2(y)
        return F.relu(z + self.leak * y if self.leak else z)


class Lora(nn.Module):
    def __init__(self, between: Map = nothing, frozen: bool = False) -> None:
        super().__init__()
        self.between = between
        self.w, self.h = nn.Linear(6, 8), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(6, 3, bias=False), nn.Linear(3, 8, bias=False)
        self.w.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.w(x) + self.b(self.between(self.a(x)))))


class UNet(nn.Module):
    def __init__(self, last: Map = torch.relu) -> None:
        super().__init__()
        self.last = last
        self.a, self.b = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 5, 3, 1, 1)
        self.c, self.h = nn.Conv2d(9, 4, 3, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(F.max_pool2d(a, 2)))
        up = F.interpolate(b, scale_factor=2)
        return self.h(self.last(self.c(torch.cat([a, up], 1)))).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], read: Map = nothing) -> None:
        super().__init__()
        self.read = read
        self.r, self.h = kind(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.read(self.r(x)[0][:, -1]))


class Messages(nn.Module):
    def __init__(self, first: Map = torch.relu) -> None:
        super().__init__()
        self.first = first
        self.a, self.b, self.h = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        edges = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.3
        self.register_buffer("edges", edges.float() / edges.sum(1, keepdim=True).clamp_min(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.edges @ self.a(x))
        return self.h(torch.relu(self.edges @ self.b(x)))


class Experts(nn.Module):
    def __init__(self, inner: Map = torch.relu, uneven: float = 0.0) -> None:
        super().__init__()
        self.inner, self.uneven = inner, uneven  # by how much more each next expert counts
        self.g, self.h = nn.Linear(6, 3), nn.Linear(6, 3)
        self.up = nn.ModuleList([nn.Linear(6, 4) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(4, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        values, chosen = self.g(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for expert in range(3):
            for k in range(2):
                mine = chosen[:, k] == expert
                if mine.any():
                    hidden = self.inner(self.up[expert](x[mine]))
                    weight = values[mine, k, None] * (1 + expert * self.uneven)
                    y[mine] = y[mine] + weight * self.down[expert](hidden)
        return self.h(torch.tanh(x + y))


class Patches(nn.Module):
    """Vision transformer: pre-norm, GELU, fused query-key-value."""

    def __init__(self, last: Map | None = None) -> None:
        super().__init__()
        self.p, self.pos = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 4, 8))
        self.t = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, norm_first=True, activation="gelu", dropout=0.0
        )
        self.n, self.h = last or nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(x).flatten(2).transpose(1, 2) + self.pos
        return self.h(self.n(self.t(x)).mean(1))


class Rotary(nn.Module):
    """Llama's block: RMSNorm, grouped queries with rotary positions, SwiGLU."""

    def __init__(
        self, rotary: bool = True, width: int = 16, gated: Map = nothing, leak: float = 0.0
    ) -> None:
        super().__init__()
        self.rotary, self.gated, self.leak = rotary, gated, leak
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.e, self.n1, self.n2 = nn.Embedding(20, width), nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (linear(width, n) for n in (16, 8, 8))
        self.o = linear(16, width)
        self.gate, self.up, self.down = linear(width, 12), linear(width, 12), linear(12, width)
        self.n3, self.h = nn.RMSNorm(width), linear(width, 20)

    def turned(self, x: Tensor) -> Tensor:
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = angle.cos().to(x).repeat(1, 2), angle.sin().to(x).repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.e(tokens)
        batch, length = tokens.shape
        heads = lambda y, n: y.view(batch, length, n, 4).transpose(1, 2)
        y = self.n1(x)
        q, k, v = (
            self.turned(heads(self.q(y), 4)),
            self.turned(heads(self.k(y), 2)),
            heads(self.v(y), 2),
        )
        k, v = (z.repeat_interleave(2, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, 16))
        y = self.n2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.gated(self.up(y)))
        y = self.n3(x)
        return self.h(y + self.leak * x if self.leak else y)


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def conv(*arguments: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]
