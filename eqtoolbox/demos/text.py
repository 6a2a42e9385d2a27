"""Text, letter by letter: two kinds of transformer and two optimizers on Python's own manual."""

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.demos.demo import Data, Demo, Entrant, Standing
from eqtoolbox.demos.gpt import GPT
from eqtoolbox.demos.transformer import Transformer

LENGTH, LETTERS = 32, 64  # of a passage; signs that are told apart
OTHER = 0
TESTED = 256  # passages


def load() -> Data:
    """Passages of `help()`'s topics and the same, one letter later; every fifth is for the test."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    common = Counter(text).most_common(LETTERS - 1)
    numbers = {letter: i + 1 for i, (letter, _) in enumerate(common)}
    coded = torch.tensor([numbers.get(letter, OTHER) for letter in text])
    passages = coded[: len(coded) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    tested = torch.arange(len(passages)) % 5 == 4
    train, test = passages[~tested], passages[tested][:TESTED]
    return Data(train=(train[:, :-1], train[:, 1:]), test=(test[:, :-1], test[:, 1:]))


def guessed(logits: Tensor, letters: Tensor) -> tuple[float, float]:
    """Share of letters whose logit is the largest; the standard error over passages."""
    right = (logits.argmax(-1) == letters).double().mean(1)
    return float(right.mean()), float(right.std()) / math.sqrt(len(right))


def loss(logits: Tensor, letters: Tensor) -> Tensor:
    """Mean cross-entropy of a letter, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), letters.flatten())


DEMO = Demo(
    name="text",
    title="transformers to continue Python's manual, letter by letter",
    load=load,
    entries={
        "rotary": Entrant(network=lambda: Transformer(LETTERS)),
        "gpt": Entrant(network=lambda: GPT(LETTERS, LENGTH)),
        "sgd": Entrant(
            network=lambda: Transformer(LETTERS),
            optimizer=lambda parameters: torch.optim.SGD(
                parameters, lr=0.3, momentum=0.9, weight_decay=1e-4
            ),
        ),
    },
    loss=loss,
    score=Standing(name="accuracy", of=guessed, rising=True),
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    steps=250,
    batch=32,
)
