"""Percent of loss of structured outputs: exactly known violations, leaf by leaf, and none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.symmetry import Each, Equivariance, Sign, Translations, equivariance_error
from eqtoolbox.symmetry.actions.action import has_edge, trivial
from eqtoolbox.symmetry.actions.resampling import Shift
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.each import Rebuilt
from eqtoolbox.symmetry.orbit import pulled_back
from eqtoolbox.symmetry.price import percent_of_loss

MIRROR = Equivariance(
    Sign(),
    Each((Parity(), trivial)),
    Each({"odd": Parity(), "even": trivial}),
    name="mirror",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, GAIN = normal(32, 3), normal(32, 1, seed=1)
TARGETS = {"odd": normal(32, 3, seed=2), "even": normal(32, 1, seed=3)}


def curves(offset: float, slope: float):
    """An odd output off by `offset`, an even one off by `slope` x; the gain does not move."""

    def f(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, gain = batch
        return {
            "odd": gain * x + offset,
            "even": (gain * x.square() + slope * x).sum(1, keepdim=True),
        }

    return f


def squares(y: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(y["odd"], TARGETS["odd"]) + 3 * F.mse_loss(y["even"], TARGETS["even"])


def measured(f, loss, claim: Equivariance = MIRROR):
    return equivariance_error(f, (X, GAIN), claim, loss=loss)


def test_the_price_of_a_known_violation_is_its_square_leaf_by_leaf() -> None:
    """f_g is f +- the violation: its variance is b^2 for one output, (d sum x)^2 for the other."""
    b, d = 0.3, 0.2
    result = measured(curves(b, d), squares)
    pulled = pulled_back(curves(b, d), (X, GAIN), MIRROR, MIRROR.group.elements())
    total = float(sum(squares({k: y[i] for k, y in pulled.items()}) for i in range(2)) / 2)
    of_odd, of_even = b**2, 3 * float((d * X.sum(1)).square().mean())
    assert result.percent_of_loss == pytest.approx(100 * (of_odd + of_even) / total, rel=1e-12)
    assert result.loss_parts["odd"] == pytest.approx(100 * of_odd / total, rel=1e-10)
    assert result.loss_parts["even"] == pytest.approx(100 * of_even / total, rel=1e-10)
    assert percent_of_loss(pulled, squares) == pytest.approx(result.percent_of_loss, rel=1e-12)


def test_an_output_that_obeys_costs_nothing_and_a_wrong_action_is_charged() -> None:
    kept = measured(curves(0.0, 0.0), squares)
    assert kept.verdict == "holds"
    assert abs(kept.percent_of_loss) < 1e-12
    assert all(abs(part) < 1e-12 for part in kept.loss_parts.values())
    half = measured(curves(0.3, 0.0), squares)
    assert abs(half.loss_parts["even"]) < 1e-12 < half.loss_parts["odd"]
    wrong = Equivariance(Sign(), MIRROR.input_action, Each({"odd": trivial, "even": trivial}))
    assert measured(curves(0.0, 0.0), squares, wrong).percent_of_loss > 1


def test_a_convex_loss_of_a_structured_output_has_its_jensen_gap() -> None:
    def absolute(y: dict[str, Tensor]) -> Tensor:
        return (y["odd"] - TARGETS["odd"]).abs().mean()

    b = 0.5
    result = measured(curves(b, 0.0), absolute)
    signed = [(GAIN * X + s * b - TARGETS["odd"]).abs().mean() for s in (1, -1, 0)]
    mean = float(signed[0] + signed[1]) / 2
    assert result.percent_of_loss == pytest.approx(100 * (mean - float(signed[2])) / mean)
    assert result.loss_parts["even"] == 0.0  # the loss does not see it


def test_a_loss_that_is_no_sum_over_outputs_has_no_parts() -> None:
    def product(y: dict[str, Tensor]) -> Tensor:
        return (y["odd"] + y["even"]).square().mean()

    result = measured(curves(0.3, 0.2), product)
    assert result.percent_of_loss > 0
    assert result.loss_parts == {}


def test_float32_energies_beside_float64_forces_keep_their_types() -> None:
    seen = set()

    def loss(y: dict[str, Tensor]) -> Tensor:
        seen.add((y["odd"].dtype, y["even"].dtype))
        return squares({k: v.double() for k, v in y.items()})

    mixed = lambda batch: (
        curves(0.3, 0.2)(batch) | {"even": curves(0.3, 0.2)(batch)["even"].float()}
    )
    assert measured(mixed, loss).percent_of_loss > 0
    assert seen == {(torch.float64, torch.float32)}


def test_what_is_compared_inside_only_is_not_averaged() -> None:
    """Edges hide behind structure: pixels that a shift loses have no mean over the orbit."""
    shift = Shift((1,))
    assert has_edge(Each({"a": trivial, "b": shift})) and has_edge(Rebuilt(shift, lambda b: b))
    assert not has_edge(Each({"a": trivial})) and not has_edge(MIRROR.output_action)
    claim = Equivariance(Translations((1,)), Each({"u": shift}), Each({"u": shift}))
    loss = lambda y: y["u"].square().mean()
    batch = {"u": normal(4, 16)}
    result = equivariance_error(lambda b: b, batch, claim, loss=loss)
    assert result.percent_of_loss is None
