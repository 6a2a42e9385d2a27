"""A scan has the group that it has, however the zeros that it starts from are made."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq

Start = Callable[[Tensor], Tensor | float]


class Scan(nn.Module):
    """Gated linear attention, S <- diag(g) S + k v^T."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.start = start
        self.q, self.k = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.v, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.g = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        state, made = self.start(x), []
        for t in range(x.shape[1]):
            state = self.g.sigmoid()[:, None] * state + k[:, t, :, None] * v[:, t, None]
            made.append((q[:, t, None] @ state)[:, 0])
        return self.head(torch.stack(made, 1).mean(1))


def sizes(x: Tensor) -> tuple[int, int, int]:
    return len(x), 2, 4


def counts(start: Start) -> dict[str, int]:
    torch.manual_seed(0)
    found = eq.weights.discover(Scan(start), (torch.randn(3, 4, 3), torch.randint(0, 3, (3,))))
    total: Counter[str] = Counter()
    for s in found:
        if s.status == "verified" and not getattr(s, "equivariant", False):
            total[s.family] += s.dimension
    return dict(total)


GROUP = {
    "gated_rescale": 3, "general_linear": 16, "translation": 5, "permutation": 1, "sign_flip": 3,
}  # fmt: skip
STARTS: dict[str, Start] = {
    "zeros": lambda x: x.new_zeros(sizes(x)),
    "a number": lambda x: 0.0,
    "times zero": lambda x: x.sum().mul(0),
    "full": lambda x: torch.full(sizes(x), 0.0, dtype=x.dtype),
    "like": lambda x: torch.full_like(x.new_empty(sizes(x)), 0),
    "filled": lambda x: x.new_empty(sizes(x)).fill_(0.0),
    "in place": lambda x: x.new_empty(sizes(x)).zero_(),
    "cast": lambda x: torch.zeros(sizes(x)).to(x),
    "turned": lambda x: x.new_zeros(4, 2, len(x)).permute(2, 1, 0).clone(),
    "repeated": lambda x: x.new_zeros(2, 4).unsqueeze(0).repeat(len(x), 1, 1),
    "cut": lambda x: x.new_zeros(9, 2, 4)[: len(x)],
}


@pytest.mark.parametrize("kind", STARTS)
def test_zeros_are_known_however_they_are_made(kind: str) -> None:
    assert counts(STARTS[kind]) == GROUP


def test_a_scan_that_starts_elsewhere_has_less() -> None:
    """Negative control: what is not zero ties the scales of keys and values to it."""
    assert counts(lambda x: torch.full(sizes(x), 0.5, dtype=x.dtype)) != GROUP
