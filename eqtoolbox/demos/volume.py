"""Volumes as in medicine: thick slices, lesions beside vessels, scanned in one pose or in any."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.demos.demo import (
    Batch,
    Contest,
    Data,
    Demo,
    Entrant,
    Maker,
    PhysicalLaw,
    Standing,
)
from eqtoolbox.enforce.averaged import averaged
from eqtoolbox.enforce.tied import tied
from eqtoolbox.symmetry.actions.permuting import Box
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Octahedral

SIZE, SPACING = 8, (2.0, 1.0, 1.0)  # voxels a side; mm between slices, rows and columns
BLUR, NOISE = 0.7, 0.25  # mm, standard deviation of the scanner's blur; of its noise
RATE = 1e-2  # of learning
POSES = Equivariance(Octahedral(SPACING), Box(), Box(), name="poses")  # 16: slices stay slices
CUBES = Equivariance(Octahedral(), Box(), Box(), name="cubes")  # wrong: as if voxels were cubes


def scan(body: Tensor) -> Tensor:
    """What a scanner makes of brightness (..., 8, 8, 8): blurred alike in all directions of mm.

    The Gaussian is `BLUR` mm wide along each axis, so narrower in voxels where slices are thick.
    """
    for axis, step in enumerate(SPACING):
        place = step * torch.arange(SIZE, dtype=torch.float64)
        kernel = torch.exp(-(place[:, None] - place).square() / (2 * BLUR**2)) * step
        along = (kernel / (BLUR * math.sqrt(2 * math.pi))).to(body)
        body = (body.movedim(axis - 3, -1) @ along).movedim(-1, axis - 3)
    return body


def phantoms(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bodies with a lesion, a ball of 1.8 to 2.6 mm, and a vessel as bright that runs across.

    Returns:
        brightness and where the lesion is, both (count, 1, 8, 8, 8) of zeros and ones.
    """
    steps = (torch.arange(SIZE) - (SIZE - 1) / 2) * torch.tensor(SPACING)[:, None]
    place = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)  # (8, 8, 8, 3) in mm
    room = torch.tensor([5.0, 2.0, 2.0])
    lesion, vessel = (2 * torch.rand(2, count, 3, generator=rng) - 1) * room
    radius = 1.8 + 0.8 * torch.rand(count, 1, 1, 1, generator=rng)
    course = 0.2 * torch.randn(count, 3, generator=rng) + torch.tensor([0.0, 0.0, 1.0])
    course = F.normalize(course, dim=1)[:, None, None, None]
    ball = (place - lesion[:, None, None, None]).norm(dim=-1) <= radius
    aside = torch.linalg.cross(place - vessel[:, None, None, None], course.expand(-1, *place.shape))
    tube = aside.norm(dim=-1) <= 1.3
    return (ball | tube)[:, None].float(), ball[:, None].float()


def posed(batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each scan with its mask in a pose of its own."""
    poses = POSES.group.sample(len(batch[0]), rng)
    x, y = (torch.stack([Box()(g, v) for g, v in zip(poses, part, strict=True)]) for part in batch)
    return x, y


def load() -> Data:
    """96 scans to learn from, in one pose, and 128 to judge by, each in a pose of its own."""
    rng = torch.Generator().manual_seed(0)
    bodies, lesions = phantoms(224, rng)
    scans = scan(bodies)
    scans = scans + NOISE * torch.randn(scans.shape, generator=rng)
    test = posed((scans[96:], lesions[96:]), rng)
    return Data(train=(scans[:96], lesions[:96]), test=test)


class VolumeNet(nn.Module):
    """Three convolutions, (batch, 1, d, h, w) -> logits of the lesion, of the same shape."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for n, m in pairwise((1, width, width, 1)):
            self.layers.append(nn.Conv3d(n, m, 3, padding=1))
            self.layers.append(nn.GELU() if m > 1 else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def adam(rate: float) -> Maker:
    """Adam at a learning rate."""
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def dice(logits: Tensor, masks: Tensor) -> tuple[float, float]:
    """Mean over volumes of 2 |A and B| / (|A| + |B|), A where a logit is positive, B the mask.

    Example:
        >>> masks = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> dice(torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, -1.0]]), masks)[0]
        0.8333333333333333
    """
    found, there = (logits > 0).double().flatten(1), masks.double().flatten(1)
    shares = 2 * (found * there).sum(1) / (found.sum(1) + there.sum(1))
    return float(shares.mean()), float(shares.std()) / math.sqrt(len(shares))


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of every voxel, those of the lesion weighted as much as the others together."""
    weight = (1 - masks).sum() / masks.sum()
    return F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight.detach().sqrt())


def laws(data: Data) -> list[PhysicalLaw]:
    """The scanner itself, in float64, of bodies without noise."""
    bodies = phantoms(16, torch.Generator().manual_seed(1))[0].double()
    texts = {
        POSES: "The scanner sees a body alike in all 16 poses that keep slices slices",
        CUBES: "With slices exchanged for rows, as if voxels were cubes, it does not",
    }
    return [
        PhysicalLaw(
            text=text,
            result=equivariance_error(scan, bodies, claim, samples=16),
            control=claim is CUBES,
        )
        for claim, text in texts.items()
    ]


def tied_net() -> nn.Module:
    """A network of four times the width with tied weights, nearly as many of them free.

    A tied weight is sqrt(16) times the mean of those that are trained, so Adam's steps of it are
    four times as long at the same rate.
    """
    return tied(VolumeNet(32), POSES, torch.randn(4, 1, SIZE, SIZE, SIZE))


DEMO = Demo(
    name="volume",
    title="networks to find lesions in scans of thick slices, judged in poses not seen",
    load=load,
    entries={
        "plain": Entrant(network=VolumeNet),
        "augmented": Entrant(network=VolumeNet, augment=POSES),
        "cubes": Entrant(network=VolumeNet, augment=CUBES),
        "averaged": Entrant(network=lambda: averaged(VolumeNet(), POSES)),
        "tied": Entrant(network=tied_net, optimizer=adam(RATE / 4)),
    },
    loss=loss,
    score=Standing(name="Dice", of=dice, rising=True),
    optimizer=adam(RATE),
    steps=250,
    batch=8,
    anneal=True,
    watched=16,
    laws=laws,
    contest=Contest(enforced=("tied",)),
)
