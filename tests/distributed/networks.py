"""Small networks with every kind of symmetry, and what trains them."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WIDTH, HEADS, LENGTH, WORDS = 12, 3, 5, 7


class Attention(nn.Module):
    """Three query heads that share one key and value head, or each its own."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared, size = shared, WIDTH // HEADS
        own = size if shared else WIDTH
        self.queries, self.keys = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, own)
        self.values, self.out = nn.Linear(WIDTH, own), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            of(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for of in (self.queries, self.keys, self.values)
        )
        k, v = (t.expand(-1, HEADS, -1, -1) for t in (k, v))
        weights = (q @ k.mT / 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """As in language models: act(gate x) * up x, and down."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(*of, bias=False) for of in ((WIDTH, 10), (WIDTH, 10), (10, WIDTH))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then a network, each on a normalised stream."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(WIDTH), Attention(gated)
        self.second = nn.LayerNorm(WIDTH)
        wide = nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, WIDTH))
        self.network = Gated() if gated else wide

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.network(self.second(x))


class Language(nn.Module):
    """A transformer: tokens and positions, a plain block and a gated one with shared keys."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(False), Block(True))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.last(self.blocks(x)))


class Pictures(nn.Module):
    """Convolutions behind batch normalisation, a deep linear end, weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.ReLU(),
            nn.Flatten(), weight_norm(nn.Linear(4 * 9, 6)), nn.LeakyReLU(), nn.Linear(6, 5),
            nn.Linear(5, 4), nn.Linear(4, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def language() -> tuple[nn.Module, Tensor, Tensor]:
    """A model with inputs and targets."""
    rng = torch.Generator().manual_seed(3)
    words = torch.randint(0, WORDS, (2, 8, LENGTH), generator=rng)
    torch.manual_seed(1)
    return Language(), words[0], words[1]


def pictures() -> tuple[nn.Module, Tensor, Tensor]:
    """Likewise."""
    rng = torch.Generator().manual_seed(3)
    images, labels = (
        torch.randn(8, 3, 6, 6, generator=rng),
        torch.randint(0, 3, (8,), generator=rng),
    )
    torch.manual_seed(1)
    return Pictures(), images, labels


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())
