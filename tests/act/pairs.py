"""Networks that are aligned, beside those of `networks`, and random elements of their groups."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.act.assignment import exchange, reflected
from eqtoolbox.act.gauge import applied, balanced
from eqtoolbox.act.motion import Flow, Mixed, Motion
from eqtoolbox.replay.isolation import evaluation
from eqtoolbox.weights import ContinuousSymmetry, ParameterSymmetry, discover
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from tests.act.networks import Batch, batch, loss_of, network, train


class Gpt(nn.Module):
    """Two causal blocks with the queries, keys and values of one map."""

    def __init__(self, d: int = 8, heads: int = 2, tokens: int = 20) -> None:
        super().__init__()
        self.e, self.p, self.heads = nn.Embedding(tokens, d), nn.Parameter(torch.randn(6, d)), heads
        self.n = nn.ModuleList(nn.LayerNorm(d) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(2))
        self.o = nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.f1 = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(2))
        self.f2 = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(2))
        self.head = nn.Linear(d, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x) + self.p
        for k in range(2):
            parts = self.qkv[k](self.n[2 * k](x)).chunk(3, -1)
            q, key, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
            mixed = F.scaled_dot_product_attention(q, key, v, is_causal=True)
            x = x + self.o[k](mixed.transpose(1, 2).flatten(2))
            x = x + self.f2[k](F.gelu(self.f1[k](self.n[2 * k + 1](x))))
        return self.head(self.n[4](x))


class Gated(nn.Module):
    """A gated block around a skip, after a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g, self.u = nn.Linear(6, 5), nn.Linear(5, 7), nn.Linear(5, 7)
        self.w, self.o = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.i(x))
        return self.o(x + self.w(F.silu(self.g(x)) * self.u(x)))


OWN: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)
    ),
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)),
    "gated": Gated,
    "gpt": Gpt,
}
NAMES = (
    "mlp", "tanh", "linear", "gated", "batch norm", "residual", "attention", "llama", "gpt",
    "experts", "depthwise",
)  # fmt: skip


def given(name: str, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch for each."""
    return batch({"gpt": "llama"}.get(name, "mlp" if name in OWN else name), dtype)


def trained(name: str, seed: int = 0) -> nn.Module:
    """After a few steps, so that statistics and gains are no longer those of the beginning."""
    if name not in OWN:
        return network(name)
    torch.manual_seed(seed)
    model = OWN[name]()
    train(model, torch.optim.SGD(model.parameters(), 0.05), given(name), 4)
    return model


def group(model: nn.Module, data: Batch) -> list[ParameterSymmetry]:
    """What keeps the function in evaluation mode."""
    with evaluation(model):
        found = discover(model, data, loss_of)
    return [
        s
        for s in found
        if s.status == "verified" and (balanced(s) if isinstance(s, ContinuousSymmetry) else True)
    ]


def element(
    symmetries: Sequence[ParameterSymmetry], params: dict[str, Tensor], sigma: float, seed: int
) -> list[Motion]:
    """A random one: orders, signs, scales e^(sigma N), matrices 1 + sigma N / sqrt d."""
    rng = torch.Generator().manual_seed(seed)
    made: list[Motion] = []
    for s in symmetries:
        if isinstance(s, Permuting):
            made.append(exchange(s, torch.randperm(s.dimension + 1, generator=rng), params))
        elif isinstance(s, SignFlip):
            units = torch.randint(0, 2, (s.dimension,), generator=rng).nonzero().reshape(-1)
            made.append(reflected(s, units))
        elif isinstance(s, MatrixSymmetry) and s.form.balance == "equal grams":
            noise = torch.randn(s.blocks, s.size, s.size, generator=rng).double()
            plus = torch.eye(s.size).double() + sigma * noise / s.size**0.5
            made.append(Mixed(form=s.form, plus=plus, minus=torch.linalg.inv(plus).mT))
        elif isinstance(s, ContinuousSymmetry):
            c = sigma * torch.randn(s.dimension, generator=rng).double()
            made.append(Flow(form=s.form, coefficients=c))
    return made


def scattered(model: nn.Module, data: Batch, sigma: float, seed: int) -> None:
    """Move a model by a random element of its group, statistics along."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    now = {n: t.detach().double() for n, t in own.items() if t.is_floating_point()}
    moved = applied(element(group(model, data), now, sigma, seed), now)
    with torch.no_grad():
        for n, x in moved.items():
            own[n].copy_(x)
