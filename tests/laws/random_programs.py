"""Random programs for the search, and the truth about their diagonal symmetries by brute force.

Scales v of single entries keep a loss exactly where sum_i v_i theta_i g_i = 0 at every theta: the
nullspace of theta * g over more random points than entries. Entries without any gradient are left
out on both sides.

    python -m tests.laws.random_programs 0 500
    python -m tests.laws.random_programs 0 500 10 cut
"""

import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.weights.search.member import Member
from eqtoolbox.weights.search.members import members
from eqtoolbox.weights.tracing.trace import trace

Params = dict[str, Tensor]
Loss = Callable[[Params], Tensor]
UNSOUND = 1e-11  # |theta g . v| up to this is rounding; epsilons must leave less, see EPSILON
EPSILON = 1e-24  # of normalisations: what it leaves of a scale is EPSILON / variance, < 1e-12 here
RANK = 1e-7  # singular values below this share of the largest are zero
GAP = 1e-3  # of the values on either side of the rank, above which a truth says nothing


@dataclass(frozen=True)
class Truth:
    """Scales of single entries that keep a loss: rows theta * g, and how many they leave free."""

    rows: Tensor  # (points, entries)
    live: Tensor  # (entries,), those with a gradient anywhere
    dimension: int
    clear: bool  # the singular values say it without doubt


def truth(loss: Loss, params: Params) -> Truth:
    """By gradients alone, at 1.1 random points an entry, in float64."""
    generator = torch.Generator().manual_seed(1)
    count, rows = sum(p.numel() for p in params.values()), []
    for _ in range(int(1.1 * count) + 20):
        leaves = {
            n: (0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
            for n, p in params.items()
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        found = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
        row = torch.cat([
            (torch.zeros_like(p) if g is None else p.detach() * g).reshape(-1)
            for p, g in zip(leaves.values(), found, strict=True)
        ])  # fmt: skip
        rows.append(row / row.norm())
    matrix = torch.stack(rows)
    live = matrix.abs().amax(0) > 1e-12
    values = torch.linalg.svdvals(matrix[:, live])
    rank = int((values > RANK * values[0]).sum())
    clear = rank == len(values) or bool(values[rank] < GAP * values[rank - 1])
    return Truth(matrix, live, int(live.sum()) - rank, clear)


def directions(found: list[Member], params: Params) -> Tensor:
    """Exponents of single entries under every unit of the members, (entries, units)."""
    columns = []
    for member in found:
        parts = []
        for name, tensor in params.items():
            own = torch.zeros(tensor.numel(), member.units, dtype=torch.float64)
            for e in (e for e in member.entries if e.name == name):
                shape = e.joined(tuple(tensor.shape)) or (1,)
                after = own.view(*shape, member.units).movedim(e.axis, 0)
                rates = torch.from_numpy(e.rates)
                for position, unit, rate in zip(e.positions, e.units, rates, strict=True):
                    after[int(position), ..., int(unit)] += rate
            parts.append(own)
        columns.append(torch.cat(parts))
    count = sum(p.numel() for p in params.values())
    return torch.cat(columns, 1) if columns else torch.zeros(count, 0, dtype=torch.float64)


@dataclass(frozen=True)
class Verdict:
    """How the search compares with the truth."""

    true: int
    found: int  # independent directions among the live entries
    listed: int  # units of members
    unsound: float  # largest |theta g . v| of a direction found, relative
    clear: bool

    @property
    def same(self) -> bool:
        return self.found == self.true == self.listed and self.unsound < UNSOUND


def compared(loss: Loss, params: Params) -> Verdict:
    """The search's members against brute force."""
    known = truth(loss, params)
    found, _ = members(trace(lambda p: (None, loss(p)), params))
    vectors = directions(found, params)
    moving = vectors[:, vectors[known.live].abs().amax(0) > 0] if vectors.numel() else vectors
    rank = int(torch.linalg.matrix_rank(moving[known.live])) if moving.numel() else 0
    unsound = float((known.rows @ moving).norm(dim=0).max()) if moving.numel() else 0.0
    return Verdict(
        known.dimension, rank, moving.shape[1], unsound / float(known.rows.norm()), known.clear
    )


@dataclass
class Program:
    """A network put together at random, the same for the same seed."""

    seed: int
    depth: int = 7
    cut: bool = False  # whether parts are cut away, so that what made them is not needed
    steps: list[tuple[str, int]] = field(default_factory=list)
    params: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._choices = random.Random(self.seed)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._built = False
        draw = lambda *shape: torch.randn(shape, generator=self._generator, dtype=torch.float64)
        self.x, self.y = draw(11, 4), draw(11, 3)
        self.run({})
        self._built = True

    def loss(self, params: Params) -> Tensor:
        """Squared error of the network's outputs."""
        return (self.run(params) - self.y).square().mean()

    def run(self, params: Params) -> Tensor:
        self._given, self._count = params, 0
        z = self.x @ self._weight(4, 6)
        for k in range(self.depth):
            if not self._built:
                self.steps.append(self._chosen(z))
            z = getattr(self, f"_{self.steps[k][0]}")(z, self.steps[k][1])
        return z.flatten(1) @ self._weight(z[0].numel(), 3)

    def _weight(self, *shape: int) -> Tensor:
        name = f"w{self._count}"
        self._count += 1
        if not self._built:
            drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64)
            self.params[name] = 0.6 * drawn
            return self.params[name]
        return self._given[name]

    def _chosen(self, z: Tensor) -> tuple[str, int]:
        """An operation that fits the shape, and its number."""
        n, choose = z.shape[-1], self._choices
        names = ["linear", "linear", "relu", "relu"]
        divisors = [k for k in (2, 3) if n % k == 0 and n > 3]
        if n > 3:
            names += ["norm", "roll", "reordered", "joined"]
        if z.dim() < 4 and divisors:
            names += ["split", "split"]
        if z.dim() > 2:
            names += ["turned", "merged", "batched", "batched", "averaged"]
        if n % 2 == 0 and n > 2:
            names += ["products", "sums", "halves", "rotated", "gated", "glu"]
        if n < 9:
            names += ["residual", "widened", "gain", "bias", "hadamard"]
        if z.dim() == 3:
            names += ["attention"]
        if self.cut:
            names += ["dropped"] * 3 * (n > 3) + ["first", "rest", "unstacked"] * (z.dim() > 2)
        name = choose.choice(names)
        number = choose.choice([2, 3, 4, 6]) if name == "linear" else choose.choice([2, 3])
        if name == "split":
            number = choose.choice(divisors)
        if name in ("roll", "joined", "dropped"):
            number = choose.randrange(1, n - 1)
        return name, number

    def _linear(self, z: Tensor, n: int) -> Tensor:
        return z @ self._weight(z.shape[-1], n)

    def _relu(self, z: Tensor, _: int) -> Tensor:
        return F.leaky_relu(z, 0.2)

    def _norm(self, z: Tensor, _: int) -> Tensor:
        return F.layer_norm(z, (z.shape[-1],), eps=EPSILON)

    def _roll(self, z: Tensor, n: int) -> Tensor:
        return z.roll(n, -1)

    def _reordered(self, z: Tensor, _: int) -> Tensor:
        return z.flip(-1)

    def _joined(self, z: Tensor, n: int) -> Tensor:
        return torch.cat([z[..., :n], F.leaky_relu(z[..., n:], 0.2)], -1)

    def _split(self, z: Tensor, n: int) -> Tensor:
        return z.reshape(*z.shape[:-1], z.shape[-1] // n, n)

    def _turned(self, z: Tensor, _: int) -> Tensor:
        return z.transpose(-1, -2)

    def _merged(self, z: Tensor, _: int) -> Tensor:
        return z.flatten(-2)

    def _batched(self, z: Tensor, n: int) -> Tensor:
        weight = self._weight(z.shape[-2], z.shape[-1], n)
        flat = z.reshape(-1, *z.shape[-2:]).transpose(0, 1)
        return (flat @ weight).transpose(0, 1).reshape(*z.shape[:-1], n)

    def _averaged(self, z: Tensor, _: int) -> Tensor:
        return z.mean(-2)

    def _dropped(self, z: Tensor, n: int) -> Tensor:
        return z.split([n, z.shape[-1] - n], -1)[n % 2]

    def _first(self, z: Tensor, _: int) -> Tensor:
        return z[..., 0, :]

    def _rest(self, z: Tensor, _: int) -> Tensor:
        return z[..., -2:, :]

    def _unstacked(self, z: Tensor, _: int) -> Tensor:
        first, *_, last = z.unbind(-2)
        return torch.cat([first, last], -1)

    def _products(self, z: Tensor, _: int) -> Tensor:
        return torch.mul(*z.chunk(2, -1))

    def _sums(self, z: Tensor, _: int) -> Tensor:
        first, second = z.chunk(2, -1)
        return first + F.leaky_relu(second, 0.2)

    def _halves(self, z: Tensor, _: int) -> Tensor:
        first, second = z.chunk(2, -1)
        return torch.cat([F.leaky_relu(second, 0.2), first], -1)

    def _rotated(self, z: Tensor, _: int) -> Tensor:
        first, second = z.chunk(2, -1)
        cosine = torch.linspace(0.3, 1, z.shape[-1], dtype=z.dtype)
        return z * cosine + torch.cat([-second, first], -1) * cosine.flip(0)

    def _gated(self, z: Tensor, _: int) -> Tensor:
        first, second = z.chunk(2, -1)
        return first * torch.sigmoid(second)

    def _glu(self, z: Tensor, _: int) -> Tensor:
        return F.glu(z, -1)

    def _residual(self, z: Tensor, _: int) -> Tensor:
        return z + F.leaky_relu(z @ self._weight(z.shape[-1], z.shape[-1]), 0.2)

    def _widened(self, z: Tensor, n: int) -> Tensor:
        return torch.cat([z, z @ self._weight(z.shape[-1], n)], -1)

    def _gain(self, z: Tensor, _: int) -> Tensor:
        return z * self._weight(z.shape[-1])

    def _bias(self, z: Tensor, _: int) -> Tensor:
        return z + self._weight(z.shape[-1])

    def _hadamard(self, z: Tensor, _: int) -> Tensor:
        n = z.shape[-1]
        return z @ (self._weight(n, 2) * self._weight(n, 2))

    def _attention(self, z: Tensor, n: int) -> Tensor:
        width = z.shape[-1]
        query, key = z @ self._weight(width, n), z @ self._weight(width, n)
        scores = (query @ key.transpose(-1, -2)).softmax(-1)
        return z + scores @ (z @ self._weight(width, width))


def main() -> None:
    """Compares programs of the given seeds; says each that differs, and a sum."""
    first, last, depth = (*map(int, sys.argv[1:4]), 7)[:3]
    torch.set_num_threads(1)
    done = differ = unsound = unclear = 0
    for seed in range(first, last):
        program = Program(seed, depth, cut="cut" in sys.argv)
        if sum(p.numel() for p in program.params.values()) > 260:
            continue
        verdict = compared(program.loss, program.params)
        if not verdict.clear:
            unclear += 1
            continue
        done += 1
        if not verdict.same:
            differ += 1
            unsound += verdict.unsound >= UNSOUND
            print(seed, verdict, program.steps, flush=True)
    print(f"{done} programs, {differ} differ, {unsound} unsound, {unclear} without a clear truth")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
