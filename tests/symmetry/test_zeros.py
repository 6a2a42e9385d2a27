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


class Joined(nn.Module):
    """A recurrent cell whose layers read input and state joined, as cells are written by hand."""

    def __init__(self, kind: str, first: float = 0.0) -> None:
        super().__init__()
        self.kind, self.first = kind, first
        self.cell = nn.Linear(7, 16 if kind == "lstm" else 4)
        self.gate, self.head = nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.full((len(x), 4), self.first, dtype=x.dtype)
        for t in range(x.shape[1]):
            joined = torch.cat([x[:, t], h], -1)
            if self.kind == "lstm":
                i, f, g, o = self.cell(joined).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif self.kind == "gated":
                z = self.gate(joined).sigmoid()
                h = (1 - z) * h + z * self.cell(joined).relu()
            else:
                h = self.cell(joined).relu()
        return self.head(h)


class Shifted(nn.Module):
    """Each token beside the one before it, zeros before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return self.c(self.b(h + before).tanh())


class Offset(nn.Module):
    """Integers joined: where each column begins in one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(12, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.cat([torch.zeros(1, dtype=torch.long), torch.tensor([4, 4]).cumsum(0)])
        return self.a(self.table(x + start).sum(1))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Joined("relu"), {"rescale": 4, "permutation": 3}),
        (lambda: Joined("gated"), {"gated_rescale": 4, "permutation": 3}),
        (lambda: Joined("lstm"), {"permutation": 3, "sign_flip": 4}),
        (Shifted, {"rescale": 4, "permutation": 7, "sign_flip": 5}),
        (lambda: Joined("relu", first=1.0), {"permutation": 3}),
        (Offset, {"general_linear": 16}),
    ],
    ids=["relu", "gated", "lstm", "shifted", "ones", "integers"],
)
def test_zeros_that_are_joined_stand_in_no_way(
    make: Callable[[], nn.Module], expected: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    if isinstance(model, Offset):
        x = torch.randint(0, 4, (8, 3))
    found = Counter[str]()
    for s in eq.weights.discover(model, x):
        assert s.status == "verified"
        if not getattr(s, "equivariant", False):
            found[s.family] += s.dimension
    assert found == expected
