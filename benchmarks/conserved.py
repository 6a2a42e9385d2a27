"""Independent conserved quantities of 50 random linear and 50 random ReLU networks, two ways.

Claim: for each network (widths 2-9, depth 2-4, every second with biases) the rank of the gradients
of the charges that discovery finds equals D - dim Lie, the number of Marcotte, Gribonval & Peyre
2023 (arXiv 2307.00144); all 100 together take at most 30 s, where their symbolic code needs 34 and
113 minutes. ReLU networks are counted by their paths as there: every activation pattern occurs.

    python benchmarks/conserved.py [networks of each kind]
"""

import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from environment import store
from independence import charges_rank, flat, lie_dimension
from timing import begin
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.parameter import ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One network and its two counts."""

    widths: tuple[int, ...]
    relu: bool
    bias: bool
    parameters: int
    charges: int  # rank of the gradients of the charges found
    lie: int  # dimension of the Lie algebra
    seconds: tuple[float, float]  # of discovery with the rank, of the Lie algebra

    @property
    def agrees(self) -> bool:
        return self.charges == self.parameters - self.lie


def network(widths: tuple[int, ...], *, relu: bool, bias: bool) -> nn.Sequential:
    """Linear layers in float64, ReLU between them or nothing."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*[m for m in layers[:-1] if relu or isinstance(m, nn.Linear)])


def count(widths: tuple[int, ...], *, relu: bool, bias: bool, seed: int) -> Counted:
    """Both counts at a random point."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    model = network(widths, relu=relu, bias=bias)
    params = {n: draw(*p.shape) / p.shape[-1] ** 0.5 for n, p in model.named_parameters()}
    total = sum(p.numel() for p in params.values())
    start = time.perf_counter()
    x = draw(64, widths[0])
    y = draw(64, widths[-1])
    loss = lambda p: (functional_call(model, p, (x,)) - y).square().mean()
    found = [
        s
        for s in find_symmetries(loss, params)
        if isinstance(s, ContinuousSymmetry) and s.status == "verified"
    ]
    charges = charges_rank(found, params)
    middle = time.perf_counter()
    samples = 3 * total // widths[-1] + 30 if relu else widths[0] + 3
    data = draw(samples, widths[0])
    masks = [(draw(samples, w) > 0).double() if relu else None for w in widths[1:-1]]
    outputs = paths(widths, bias, masks)
    lie = lie_dimension(outputs, flat(params), data, generator)
    seconds = (middle - start, time.perf_counter() - middle)
    return Counted(
        widths=widths,
        relu=relu,
        bias=bias,
        parameters=total,
        charges=charges,
        lie=lie,
        seconds=seconds,
    )


def paths(widths: tuple[int, ...], bias: bool, masks: list[Tensor | None]):  # type: ignore[no-untyped-def]
    """The network with its activation patterns given: outputs are sums over open paths."""

    def outputs(theta: Tensor, x: Tensor) -> Tensor:
        at = 0
        for i, (n, m) in enumerate(pairwise(widths)):
            weight, at = theta[at : at + n * m].view(m, n), at + n * m
            x = x @ weight.mT
            if bias:
                x, at = x + theta[at : at + m], at + m
            mask = masks[i] if i < len(masks) else None
            x = x if mask is None else x * mask
        return x

    return outputs


def draws(number: int, relu: bool) -> list[Counted]:
    """Random networks of one kind, every second with biases."""
    generator = torch.Generator().manual_seed(7 + relu)
    found = []
    for i in range(number):
        depth = int(torch.randint(2, 5, (), generator=generator))
        widths = torch.randint(2, 10, (depth + 1,), generator=generator).tolist()
        found.append(count(tuple(widths), relu=relu, bias=bool(i % 2), seed=i))
    return found


def main() -> None:
    state = begin()
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    results = {}
    for name, relu in (("linear", False), ("relu", True)):
        start, cpu = time.perf_counter(), time.process_time()
        rows = draws(number, relu)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        right = sum(r.agrees for r in rows)
        print(f"{name:7s} {right} of {number} agree, {seconds:.1f} s ({cpu:.1f} s of processor)")
        for r in rows:
            if not r.agrees:
                print(f"  {r.widths} bias {r.bias}: {r.charges}, D - dim {r.parameters - r.lie}")
        results[name] = {"seconds": seconds, "processor_seconds": cpu, "agree": right}
        results[name]["networks"] = [asdict(r) for r in rows]
    print(store("conserved", {"machine": state, **results}))


if __name__ == "__main__":
    main()
