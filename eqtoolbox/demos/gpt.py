"""A small transformer of GPT-2's kind: biases everywhere, LayerNorm, learned positions, GELU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GPTBlock(nn.Module):
    """LayerNorm, attention to what came before, LayerNorm, a perceptron on each place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.each = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (y.transpose(-3, -2) for y in parts.unbind(-3))
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heard.transpose(-3, -2).flatten(-2))
        out: Tensor = x + self.each(self.norm2(x))
        return out


class GPT(nn.Module):
    """Two blocks between a token table and a linear head: tokens (batch, length) -> logits.

    Args:
        tokens: in the vocabulary.
        length: of the longest text.
        width, heads: of the blocks.
    """

    def __init__(self, tokens: int, length: int, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
