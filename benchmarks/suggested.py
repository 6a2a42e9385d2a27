"""Claim: quarter turns are suggested for turned digits, never for upright ones; the robot's mirror.

100 digits of several draws, upright and each turned by a random quarter turn; sixes and their
half turns, called nines; 256 states of the two-arm robot. A row is a call of `eq.suggest`.

    OMP_NUM_THREADS=1 python benchmarks/suggested.py
"""

import time
from typing import Any

import torch
from environment import store
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.choose import Suggestions
from eqtoolbox.demos.digits import DigitNet, load_digits
from eqtoolbox.demos.robot import MIRROR, PlainArm, torques
from eqtoolbox.symmetry import Cyclic, Equivariance
from eqtoolbox.symmetry.actions import quarter_turn, trivial

IMAGES, LABELS = load_digits().train
HALF = Equivariance(Cyclic(2), lambda g, x: quarter_turn(2 * g, x), trivial, name="half")
DRAWS = 6


def turned(images: Tensor, turns: Tensor) -> Tensor:
    return torch.stack([quarter_turn(int(k), x) for k, x in zip(turns, images, strict=True)])


def perceptron(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, classes),
    )  # fmt: skip


def row(found: Suggestions, seconds: float) -> dict[str, Any]:
    """What stands first, and everything that gains."""
    top = found[0]
    return {
        "first": f"{top.claim.name} {top.way}".strip(),
        "outcome": top.outcome,
        "gain": top.gain and [round(top.gain.value, 3), round(top.gain.stderr, 3)],
        "score": top.score and round(top.score, 3),
        "plain": found.plain and round(found.plain, 3),
        "evidence": top.evidence and round(top.evidence, 2),
        "plain evidence": found.plain_evidence and round(found.plain_evidence, 2),
        "gains": [f"{r.claim.name} {r.way}" for r in found if r.outcome == "gains"],
        "cpu s": round(seconds, 1),
    }


def asked(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> dict[str, Any]:
    start = time.process_time()
    found = eq.suggest(model, x, y, **options)
    told = row(found, time.process_time() - start)
    print(told, flush=True)
    return told


def results() -> dict[str, Any]:
    """A list of rows for every kind of data."""
    tables: dict[str, Any] = {"turned": [], "upright": [], "six and nine": [], "robot": []}
    for seed in range(DRAWS):
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(LABELS), generator=rng)[:100]
        turns = torch.randint(4, (100,), generator=rng)
        torch.manual_seed(seed)
        x, y = IMAGES[rows], LABELS[rows]
        tables["turned"].append(asked(perceptron(), turned(x, turns), y))
        tables["upright"].append(asked(perceptron(), x, y))
        sixes = IMAGES[LABELS == 6]
        sixes = sixes[torch.randperm(len(sixes), generator=rng)[:100]]
        heads = torch.randint(2, (100,), generator=rng)
        half = {"claims": [HALF], "ways": ["averaged"]}
        tables["six and nine"].append(asked(perceptron(2), turned(sixes, 2 * heads), heads, **half))
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(256, 12, generator=torch.Generator().manual_seed(seed))
        options = {"claims": [MIRROR], "ways": ["averaged"], "infer": False}
        tables["robot"].append(asked(PlainArm(), x, torques(x), **options))
    torch.manual_seed(0)
    turns = torch.randint(4, (100,), generator=torch.Generator().manual_seed(0))
    tables["turned, convolutions"] = [asked(DigitNet(), turned(IMAGES[:100], turns), LABELS[:100])]
    return tables


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(store("suggested", results()))
