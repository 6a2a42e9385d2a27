"""A small transformer of today's kind; with a batch of tokens, for `eqtoolbox symmetries`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, KEYS, SIZE, HIDDEN = 32, 16, 4, 2, 4, 24


class Block(nn.Module):
    """RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.query = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.key = nn.Linear(WIDTH, KEYS * SIZE, bias=False)
        self.value = nn.Linear(WIDTH, KEYS * SIZE, bias=False)
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        batch, length, _ = y.shape
        q, k, v = (
            layer(y).view(batch, length, -1, SIZE).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        k, v = (z.repeat_interleave(HEADS // KEYS, 1) for z in (rotated(k), v))
        y = F.scaled_dot_product_attention(rotated(q), k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of (batch, heads, positions, SIZE)."""
    rates = 100.0 ** -(torch.arange(SIZE // 2) / (SIZE // 2))
    angle = torch.arange(x.shape[2])[:, None] * rates
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Transformer(nn.Module):
    """Two blocks between a token table and a linear head: tokens -> logits."""

    def __init__(self, tokens: int = TOKENS) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def build() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """(model, (tokens, next tokens)), the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = torch.randint(0, TOKENS, (4, 13))
        return Transformer(), (text[:, :-1], text[:, 1:])
