"""Words without order: transformers that tell the topics of Python's own help texts apart."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.demos.demo import Data, Demo, Entrant
from eqtoolbox.demos.scores import ACCURACY
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.groups.finite import Symmetric

LENGTH, WORDS, TOPICS = 24, 500, 8  # places, vocabulary, classes
BLOCK = 48  # words; every fourth block of a text is kept for the test
PADDING, UNKNOWN = 0, 1
_ORDERS = Symmetric(LENGTH)
SHUFFLES = Equivariance(
    _ORDERS, Each((Permute(-1), Permute(-1))), trivial, name="shuffles"
)  # the padding moves with the words
FORGOTTEN = Equivariance(
    _ORDERS, Each((Permute(-1), trivial)), trivial, name="shuffles-without-padding"
)


class TokenReader(nn.Module):
    """A transformer of two layers that averages over the words that are there.

    Args:
        positions: tell places apart, as transformers do.
        width, heads: of the layers.
    """

    def __init__(self, positions: bool, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.positions = TokenPositions(width) if positions else nn.Identity()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(2))
        self.head = nn.Linear(width, TOPICS)

    def forward(self, words: Tensor, there: Tensor) -> Tensor:
        h = self.positions(self.words(words))
        for layer in self.layers:
            h = layer(h, there)
        weight = there / there.sum(-1, keepdim=True)
        logits: Tensor = self.head((weight[..., None] * h).sum(-2))
        return logits


class TokenPositions(nn.Module):
    """Adds a learned vector for each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(LENGTH, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.weight


class Layer(nn.Module):
    """Attention to the words that are there, then a perceptron on each word."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.middle = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.each = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        parts = self.mix(self.before(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (x.transpose(-3, -2) for x in parts.unbind(-3))
        bias = there.log()[:, None, None, :]  # -inf: nobody listens to padding
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = h + self.out(heard.transpose(-3, -2).flatten(-2))
        answer: Tensor = h + self.each(self.middle(h))
        return answer


def load() -> Data:
    """Passages of 8 to 24 words from the longest topics of `help()`, with the topic's number."""
    from pydoc_data.topics import topics

    longest = sorted(topics.values(), key=len, reverse=True)[:TOPICS]
    texts = [re.findall(r"[a-z_]{2,}", text.lower()) for text in longest]
    common = Counter(word for text in texts for word in text).most_common(WORDS - 2)
    numbers = {word: i + 2 for i, (word, _) in enumerate(common)}
    coded = [torch.tensor([numbers.get(word, UNKNOWN) for word in text]) for text in texts]
    blocks = [torch.split(text, BLOCK)[:-1] for text in coded]  # the last one may be short
    rng = torch.Generator().manual_seed(0)
    train = [[b for i, b in enumerate(text) if i % 4 < 3] for text in blocks]
    test = [text[3::4] for text in blocks]
    return Data(train=_passages(train, 400, rng), test=_passages(test, 60, rng))


def _passages(
    texts: Sequence[Sequence[Tensor]], count: int, rng: torch.Generator
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """`count` passages of each text, from its blocks: ((words, there), topics)."""

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=rng))

    rows = []
    for blocks in texts:
        for _ in range(count):
            block, length = blocks[below(len(blocks))], 8 + below(LENGTH - 7)
            start = below(BLOCK - length + 1)
            rows.append(F.pad(block[start : start + length], (0, LENGTH - length), value=PADDING))
    words, labels = torch.stack(rows), torch.arange(len(texts)).repeat_interleave(count)
    order = torch.randperm(len(words), generator=rng)
    words = words[order]
    return (words, (words != PADDING).float()), labels[order]


DEMO = Demo(
    name="tokens",
    title="transformers to tell the topics of Python's help texts from some words",
    load=load,
    entries={
        "positions": Entrant(network=lambda: TokenReader(positions=True)),
        "augmented": Entrant(network=lambda: TokenReader(positions=True), augment=SHUFFLES),
        "set": Entrant(network=lambda: TokenReader(positions=False)),
    },
    loss=F.cross_entropy,
    score=ACCURACY,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.5),
    steps=400,
    batch=64,
    anneal=True,
    watched=128,
)
