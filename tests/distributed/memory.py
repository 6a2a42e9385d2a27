"""How much memory charges take beside a shard of a transformer: run by itself, in megabytes."""

import gc
import json
import sys

import torch
from torch import Tensor

from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.families.diagonal import Rescale
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.diagonal import leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.world.shards import Piece, Shards, stretch_of

WIDTH, HEADS, LAYERS = 1024, 16, 4


def layer(n: int) -> tuple[dict[str, tuple[int, ...]], list[ContinuousSymmetry]]:
    """Shapes of one layer's parameters, and what they conserve."""
    q, k, v, o, a, b = (f"{n}.{name}" for name in "qkvoab")
    square, wide = (WIDTH, WIDTH), 4 * WIDTH
    shapes = dict.fromkeys((q, k, v, o), square) | {a: (wide, WIDTH), b: (WIDTH, wide)}
    size = WIDTH // HEADS
    heads, every = torch.arange(WIDTH).reshape(HEADS, 1, size), torch.arange(wide)
    pairs = (MatrixLeg(q, 0, heads, 1), MatrixLeg(k, 0, heads, -1))
    values = (MatrixLeg(v, 0, heads, 1), MatrixLeg(o, 1, heads, -1))
    one = torch.ones(wide).double()
    units = (
        leg(a, shapes[a], 0, every, every, one),
        leg(b, shapes[b], 1, every, every, -one),
    )
    dimension = HEADS * size**2
    return shapes, [
        GeneralLinear(name=f"{n} keys", dimension=dimension, legs=pairs),
        GeneralLinear(name=f"{n} values", dimension=dimension, legs=values),
        Rescale(name=f"{n} units", dimension=wide, legs=units),
    ]


def megabytes(what: str) -> float:
    """Of this process: resident now, or at most since it was last reset."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(what))
    return int(line.split()[1]) / 1000


def peak_over(base: float) -> float:
    return megabytes("VmHWM") - base


def main(ranks: int) -> dict[str, float]:
    """One rank of so many, with what it would exchange in place of what others send."""
    layers = [layer(n) for n in range(LAYERS)]
    shapes = {name: shape for own, _ in layers for name, shape in own.items()}
    layout = {n: Piece(torch.Size(s), 0, *stretch_of(s[0], 0, ranks)) for n, s in shapes.items()}

    def exchange(into: Tensor, given: Tensor, *counts: object) -> None:
        into.zero_()

    shards = Shards(layout=layout, rank=0, ranks=ranks, exchange=exchange)
    before = {n: torch.ones(p.shape) for n, p in layout.items()}
    members = [m for _, own in layers for m in own]
    charges = Charges(members, before, sketch=True, shards=shards)
    rates = Rates(lr=dict.fromkeys(shapes, 0.1), decay=dict.fromkeys(shapes, 0.0))
    found = {"shard": sum(p.numel() for p in before.values()) * 4e-6}
    after = {n: 0.9 * p for n, p in before.items()}
    values = torch.zeros(charges.count, dtype=torch.float64)
    gc.collect()
    for what in ("step", "reading"):
        base = megabytes("VmRSS")
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        if what == "step":
            charges.step(values, before, after, before, rates)
        else:
            reading = charges.read(before)
            charges.lengths(reading), charges.scales(reading), charges.sketched(reading)
        found[what] = peak_over(base)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
