"""Batches of small images, from a list or from loaders with worker processes."""

import random
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

LOADERS = ("list", "loader", "fork", "spawn")
SAMPLES = 6


class Images(Dataset[tuple[Tensor, int]]):
    """Noise with labels; `augmented` draws from the global streams of whoever loads."""

    def __init__(self, length: int, seed: int, double: bool, augmented: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 1, 4, 4, generator=generator)
        self.images = self.images.to(torch.float64 if double else torch.float32)
        self.labels = torch.randint(0, 3, (length,), generator=generator).tolist()
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i]
        if self.augmented:
            image = image + 0.1 * torch.randn_like(image) + 0.1 * random.random()
        return image, self.labels[i]


def batches(images: Images, loader: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch, epoch after epoch."""
    if loader == "list":
        for at in count(0, SAMPLES):
            rows = torch.arange(at, at + SAMPLES) % len(images)
            yield images.images[rows], torch.tensor([images.labels[i] for i in rows.tolist()])
    workers = {"fork": 2, "spawn": 1}.get(loader, 0)
    context = loader if workers else None
    made = DataLoader(
        images, SAMPLES, shuffle=True, num_workers=workers, multiprocessing_context=context
    )
    while True:
        yield from made
