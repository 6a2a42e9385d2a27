"""The networks of `gpu.py`: a GPT and a residual network, at their usual sizes or tiny."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and two layers, both beside a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        parts = self.qkv(self.before(x)).view(rows, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.out(y.reshape(rows, tokens, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Gpt(nn.Module):
    """Token and place embeddings, blocks, and a head of its own."""

    def __init__(self, words: int, width: int, blocks: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(blocks)])
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.words(x) + self.places[: x.shape[1]])
        return self.head(self.last(x)).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions beside a stream, which is projected where its shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.stream = nn.Conv2d(inner, outer, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + (x if self.stream is None else self.stream(x)))


def resnet(width: int) -> nn.Module:
    """ResNet-18 for small pictures."""
    steps = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
    blocks = [Residual(width * i, width * o, stride) for i, o, stride in steps]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A network, its batches, and the precision that it trains in."""

    name: str
    model: nn.Module
    batches: list[Batch]
    autocast: torch.dtype | None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        device = batch[0].device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return F.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)


def gpt(device: str, tiny: bool, autocast: torch.dtype | None = torch.bfloat16) -> Task:
    """GPT-2 of 124 M parameters, 8 rows of 512 tokens."""
    words, width, blocks, heads, tokens, rows = (
        (32, 16, 1, 2, 8, 4) if tiny else (50257, 768, 12, 12, 512, 8)
    )
    torch.manual_seed(0)
    model = Gpt(words, width, blocks, heads, tokens).to(device)
    drawn = [torch.randint(words, (rows, tokens + 1), device=device) for _ in range(4)]
    return Task("gpt", model, [(x[:, :-1], x[:, 1:]) for x in drawn], autocast)


def pictures(device: str, tiny: bool, autocast: torch.dtype | None = torch.bfloat16) -> Task:
    """ResNet-18 of 11 M parameters, 256 pictures, channels last."""
    width, count, size = (2, 4, 8) if tiny else (64, 256, 32)
    torch.manual_seed(0)
    layout = torch.channels_last
    model = resnet(width).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    x = [torch.randn(count, 3, size, size, device=device) for _ in range(4)]
    y = [torch.randint(10, (count,), device=device) for _ in range(4)]
    moved = [a.to(memory_format=layout) for a in x]
    return Task("resnet", model, list(zip(moved, y, strict=True)), autocast)
