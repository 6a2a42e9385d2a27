"""Models that e3nn's own test and ours both measure, and cases whose truth is known."""

from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved
from torch import Tensor, nn

from eqtoolbox.symmetry import E3, O3, Each, Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.foreign import FromIrreps
from eqtoolbox.symmetry.actions.linear import positions, vectors
from eqtoolbox.symmetry.groups.matrices import rows

REPEATS, TRIALS = 15, 4  # four trials of e3nn are eight elements of O(3), or sixteen of E(3)
TOLERANCE = 1e-3  # of e3nn's assert_equivariant in float32
Row = dict[str, Any]
FORCES = Each((trivial, vectors))


class Products(nn.Module):
    """Two tensor products of e3nn with a square non-linearity by construction: equivariant."""

    irreps = "8x0e + 8x1o"

    def __init__(self) -> None:
        super().__init__()
        from e3nn import o3

        self.first = o3.TensorSquare(self.irreps, self.irreps)
        self.second = o3.TensorSquare(self.irreps, self.irreps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


class Cloud(nn.Module):
    """Energy and forces of points by pairwise Gaussians: invariant and equivariant under E(3)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = x[..., :, None, :] - x[..., None, :, :]
        strength = torch.exp(-pairs.square().sum(-1))
        return strength.sum((-2, -1))[..., None], (2 * strength[..., None] * pairs).sum(-2)


def theirs(function: Any, x: Tensor, into: Any, out: Any, trials: int = TRIALS) -> float:
    """e3nn's largest absolute error."""
    from e3nn.util.test import equivariance_error as error

    with torch.no_grad():
        found = error(function, [x], irreps_in=[into], irreps_out=out, ntrials=trials)
    return max(float(e.max()) for e in found.values())


def same_element(function: Any, x: Tensor, irreps: Any) -> Row:
    """e3nn's number again, from our actions: the same random rotation, the same largest error."""
    from e3nn import o3

    torch.manual_seed(3)
    found = theirs(function, x, irreps, [irreps], trials=1)
    torch.manual_seed(3)
    errors = []
    for sign in (1, -1):
        g, action = rows(sign * o3.rand_matrix(dtype=torch.float64)), FromIrreps(irreps)
        with torch.no_grad():
            apart = function(action(g, x)).double() - action(g, function(x).double())
        errors.append(float(apart.abs().max()))
    return {"case": "largest error at the same rotation", "e3nn": found, "ours": max(errors)}


def side_by_side() -> list[Row]:
    """The same model, inputs and number of group elements: both numbers and the ratio of times."""
    from e3nn import o3

    torch.manual_seed(0)
    irreps, network = o3.Irreps(Products.irreps), Products()
    x = irreps.randn(4096, -1)
    action = FromIrreps(irreps)
    broken = nn.Sequential(network, Cut(irreps.dim))
    points = torch.randn(64, 48, 3)
    claims = Equivariance(O3(), action, action), Equivariance(E3(10.0), positions, FORCES)
    cases = {
        "tensor products, O(3)": (network, x, claims[0], irreps, [irreps], 8),
        "the same, one channel cut by 1e-3": (broken, x, claims[0], irreps, [irreps], 8),
        "pair forces, E(3)": (Cloud(), points, claims[1], "cartesian_points", ["0e", "1o"], 16),
    }
    found = []
    for name, (f, inputs, claim, into, out, count) in cases.items():
        calls: dict[str, Callable[[], Any]] = {
            "e3nn": lambda f=f, x=inputs, i=into, o=out: theirs(f, x, i, o),
            "ours": lambda f=f, x=inputs, c=claim, n=count: equivariance_error(
                f, x, c, samples=n, check=False
            ),
            "first": lambda f=f, x=inputs, c=claim, n=count: equivariance_error(f, x, c, samples=n),
            "forward": torch.no_grad()(lambda f=f, x=inputs: f(x)),
        }
        times = interleaved(calls, repeats=REPEATS)
        result, theirs_now = calls["ours"](), calls["e3nn"]()
        found.append(
            {
                "case": name,
                "e3nn, largest absolute": theirs_now,
                "e3nn's verdict": "passes" if theirs_now <= TOLERANCE else "fails",
                "ours, relative": result.relative_error,
                "floor": result.floor,
                "our verdict": result.verdict,
                "elements": count,
                "e3nn, forwards": times.ratio("e3nn", "forward"),
                "ours, forwards": times.ratio("ours", "forward"),
                "ours with the check of the actions, forwards": times.ratio("first", "forward"),
                "time ours / e3nn": times.ratio("ours", "e3nn"),
            }
        )
    return [*found, same_element(network, x, irreps)]


class Cut(nn.Module):
    """Shrinks one component by 1e-3, which breaks the rotation of its vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(size))
        self.factor[-1] -= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def misleading_e3nn() -> list[Row]:
    """Cases of known truth for an absolute tolerance and a test without a floor."""
    torch.manual_seed(0)
    x, m = torch.randn(64, 3), torch.randn(3, 3)
    cubes = lambda x: x * x.square().sum(-1, keepdim=True)
    claim = Equivariance(O3(), vectors, vectors)
    dropping = nn.Sequential(Norms(), nn.Dropout(0.1))
    invariant = Equivariance(O3(), vectors, trivial)
    cases: list[tuple[str, str, Any, Tensor, Equivariance, Any, str]] = [
        ("random matrix", "violated", lambda x: x @ m, x, claim, ["1o"], "1o"),
        ("random matrix times 1e-5", "violated", lambda x: 1e-5 * x @ m, x, claim, ["1o"], "1o"),
        ("x |x|^2", "holds", cubes, x, claim, ["1o"], "1o"),
        ("x |x|^2 times 1e4", "holds", lambda x: 1e4 * cubes(x), x, claim, ["1o"], "1o"),
        ("norms with dropout on", "unresolved", dropping, x, invariant, ["0e"], "1o"),
    ]
    found = []
    for name, truth, f, inputs, law, out, into in cases:
        error = theirs(f, inputs, into, out)
        result = equivariance_error(f, inputs, law)
        found.append(
            {
                "case": name,
                "truth": truth,
                "e3nn, largest absolute": error,
                "e3nn's verdict": "passes" if error <= TOLERANCE else "fails",
                "ours, relative": result.relative_error,
                "our verdict": result.verdict,
                "note": result.note,
            }
        )
    return [*found, wigner_in_float32()]


class Norms(nn.Module):
    """|x|: invariant."""

    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True)


def wigner_in_float32() -> Row:
    """Quadrupoles of float64 vectors, equivariant to 1e-15, while the default dtype is float32."""
    from e3nn import o3

    x, irreps = torch.randn(64, 3, dtype=torch.float64), o3.Irreps("1x2e")
    f = lambda x: o3.spherical_harmonics(2, x, normalize=False)
    result = equivariance_error(f, x, Equivariance(O3(), vectors, FromIrreps(irreps)))
    error = theirs(f, x, "1o", [irreps])
    return {
        "case": "quadrupoles of float64 vectors, default dtype float32",
        "truth": "holds",
        "e3nn, largest absolute": error,
        "e3nn's verdict": "passes" if error <= 1e-9 else "fails",
        "ours, relative": result.relative_error,
        "our verdict": result.verdict,
        "note": "e3nn builds its matrices in the default dtype; its tolerance in float64 is 1e-9",
    }
