"""Every softmax of a head has a translation of its own; dimensions are counted by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search import point

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, width))


def pictures() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 6, 1))


def normalised() -> nn.Module:
    """Each of two heads of three without its mean: two constants of each column go."""
    norm = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LayerNorm(3), nn.Flatten())
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3))


def atoms(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    """Distributions over three values, of two actions."""
    return F.cross_entropy(m(b[0]).view(-1, 3), b[1][:, :2].flatten())


def second(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(m(b[0]).unflatten(1, (3, 2)), b[1][:, :2])


def unequal(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    y = m(b[0])
    return F.cross_entropy(y[:, :3], b[1][:, 0]) + F.cross_entropy(y[:, 3:], b[1][:, 1])


def beside(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    """Classes between what is regressed."""
    y = m(b[0])
    return F.cross_entropy(y[:, 2:5], b[1][:, 0]) + y[:, :2].exp().mean() + y[:, 5:].cosh().mean()


def pixels(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(m(b[0]).unflatten(1, (2, 3)).transpose(1, 2), b[1])


def one(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1][:, 0])


CASES: dict[str, tuple[Callable[[], nn.Module], Loss, dict[str, int]]] = {
    "values of each action": (lambda: dense(6), atoms, {"2": 12}),
    "values first": (lambda: dense(6), second, {"2": 12}),
    "heads of unequal sizes": (lambda: dense(7), unequal, {"2": 12}),
    "classes beside numbers": (lambda: dense(7), beside, {"2": 6}),
    "pixels": (pictures, pixels, {"2": 8}),
    "one softmax": (lambda: dense(6), one, {"2": 6}),
    "normalised heads": (normalised, one, {"0": 10, "3": 7}),
}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("case", CASES)
def test_each_softmax_has_its_own_translation(
    case: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "large":
        monkeypatch.setattr(point, "_KEPT_MODEL", 0)
    make, loss_fn, expected = CASES[case]
    torch.manual_seed(0)
    model = make().double()
    shape = (9, 2, 3, 3) if case == "pixels" else (9, 4)
    target = (9, 2, 3, 3) if case == "pixels" else (9, 2)
    batch = torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, target)
    found = [s for s in eq.weights.discover(model, batch, loss_fn) if s.family == "translation"]
    assert {s.name: s.dimension for s in found if s.status == "verified"} == expected
    params = {n: p.detach() for n, p in model.named_parameters()}
    moved = params
    for s in found:
        assert isinstance(s, ContinuousSymmetry)
        moved = {**moved, **s.transform(moved, torch.randn(s.dimension, dtype=torch.float64))}
    with torch.no_grad():
        before = float(loss_fn(model, batch))
        model.load_state_dict(moved)
        assert float(loss_fn(model, batch)) == pytest.approx(before, rel=1e-12)
