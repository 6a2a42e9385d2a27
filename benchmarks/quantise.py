"""Accuracy of digits networks with weights of few bits, as they are and balanced before.

Claim: weights that were moved along the orbit by e^(sigma N) a unit, which changes no output, lose
their accuracy when each tensor is rounded to 2^bits levels; balanced first they are within .005
of the floating-point accuracy at 8 bits. Networks as they come out of training gain nothing there.

    python benchmarks/quantise.py [seeds]
"""

import copy
import sys
from dataclasses import asdict, dataclass
from statistics import mean

import torch
from environment import store
from torch import Tensor, nn
from torch.nn import functional as F

from eqtoolbox import act
from eqtoolbox.demos.digits import DigitNet, load_digits
from eqtoolbox.weights import ContinuousSymmetry, discover

SIGMAS, BITS, STEPS = (0.0, 1.0, 2.0), (8, 4, 3), 600
MOVED = ("rescale", "gain_rescale")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Test accuracy of one network, one move and one precision; bits 0 are floating point."""

    network: str
    seed: int
    sigma: float
    bits: int
    as_is: float
    balanced: float


def mlp() -> nn.Module:
    """Three hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


NETWORKS = {"mlp": mlp, "convolutions": DigitNet}
Data = tuple[Tensor, Tensor]


def trained(make: str, seed: int, data: Data) -> nn.Module:
    """A network after Adam on minibatches, in evaluation mode."""
    torch.manual_seed(seed)
    model = NETWORKS[make]()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(data[0]), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return model.eval()


def scatter(model: nn.Module, batch: Data, sigma: float, seed: int) -> None:
    """Move along every rescaling of units by elements of size sigma."""
    generator = torch.Generator().manual_seed(seed)
    for s in discover(model, batch):
        if isinstance(s, ContinuousSymmetry) and s.family in MOVED and s.status == "verified":
            act.move(model, s, sigma * torch.randn(s.dimension, generator=generator))


@torch.no_grad()
def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Every matrix and kernel on 2^bits - 1 levels between its largest entry and its negative."""
    made, most = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for p in made.parameters():
        if p.dim() > 1:
            step = p.abs().max() / most
            p.copy_((p / step).round().clamp(-most, most) * step)
    return made


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of test images that are recognised."""
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def run(seeds: int) -> list[Quantised]:
    """All networks, moves and precisions."""
    digits, found = load_digits(), []
    batch = digits.train[0][:512], digits.train[1][:512]
    for name in NETWORKS:
        for seed in range(seeds):
            model = trained(name, seed, digits.train)
            for sigma in SIGMAS:
                moved = copy.deepcopy(model)
                if sigma:
                    scatter(moved, batch, sigma, seed)
                balanced = copy.deepcopy(moved)
                act.balance(balanced, batch, curvature=False)
                for bits in (0, *BITS):
                    pair = (moved, balanced)
                    each = [rounded(m, bits) if bits else m for m in pair]
                    scores = [accuracy(m, digits.test) for m in each]
                    found.append(
                        Quantised(
                            network=name, seed=seed, sigma=sigma, bits=bits,
                            as_is=scores[0], balanced=scores[1],
                        )
                    )  # fmt: skip
    return found


def table(rows: list[Quantised]) -> list[dict[str, object]]:
    """Means over seeds."""
    keys = dict.fromkeys((r.network, r.sigma, r.bits) for r in rows)
    made = []
    for key in keys:
        own = [r for r in rows if (r.network, r.sigma, r.bits) == key]
        pair = [mean(getattr(r, side) for r in own) for side in ("as_is", "balanced")]
        made.append(
            dict(zip(("network", "sigma", "bits", "as_is", "balanced"), (*key, *pair), strict=True))
        )
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    every = run(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    for row in table(every):
        print(" ".join(f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in row.values()))
    print(store("quantise", {"means": table(every), "all": [asdict(r) for r in every]}))
