"""The equivariance part of the loss, its gradient and curvature, and the asymmetry of data."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.symmetry import Each, Equivariance, Sign
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.asymmetry import data_asymmetry
from eqtoolbox.symmetry.groups.matrices import SO2
from tests.probes.test_equivariance_probe import measured

ODD = Equivariance(Sign(), Parity(), Parity(), name="odd")
TURN = Equivariance(SO2(), vectors, trivial)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(slope: float, offset: float) -> nn.Module:
    model = nn.Linear(1, 1).double()
    nn.init.constant_(model.weight, slope)
    nn.init.constant_(model.bias, offset)
    return model


def test_a_bias_is_the_whole_violation_of_an_odd_line_and_its_gradient_stands_alone() -> None:
    """f = ax + b, squared loss: the split is b^2 + mean (ax - y)^2, the Hessian along b is 2."""
    x = normal(32, 1)
    y = 2 * x + 0.1 * normal(32, 1, seed=1)
    a, b = 0.5, 3.0
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    records = measured(line(a, b), loss, (x, y), Asymmetry(symmetries=(ODD,)), steps=1)
    rest = float((2 * x * (a * x - y)).mean())
    assert records["asymmetry/cosine/odd"].value == pytest.approx(0.0, abs=1e-12)
    share = 2 * b / (2 * b + abs(rest))
    assert records["asymmetry/share/odd"].value == pytest.approx(share, rel=1e-10)
    assert records["asymmetry/rayleigh/odd"].value == pytest.approx(2.0, rel=1e-6)
    along = 2 * float(x.square().mean())
    assert records["asymmetry/rest_rayleigh/odd"].value == pytest.approx(along, rel=1e-6)


def test_targets_that_are_not_odd_pull_the_two_gradients_apart() -> None:
    """f = a (x + 1): violation a^2, rest (ax - y)^2 with y = 5 + 3x; both derivatives are known."""
    x = normal(64, 1)
    y = 5.0 + 3 * x

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.a * (x + 1)

    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    records = measured(Tied(), loss, (x, y), Asymmetry(symmetries=(ODD,)), steps=1)
    assert records["asymmetry/cosine/odd"].value == pytest.approx(-1.0, rel=1e-12)


def test_an_odd_line_has_no_gradient_of_its_violation() -> None:
    x = normal(32, 1)
    x = torch.cat([x, -x])
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    records = measured(line(1.0, 0.0), loss, (x, 2 * x), Asymmetry(symmetries=(ODD,)), steps=1)
    assert records["asymmetry/cosine/odd"].status == "not_applicable"
    assert records["asymmetry/share/odd"].value == 0.0
    assert records["asymmetry/data/odd"].verdict == "holds"
    assert "inputs and targets" in records["asymmetry/data/odd"].note


def test_a_loss_that_sees_more_than_the_output_has_no_split() -> None:
    loss = lambda model, batch: model(batch).square().mean() + model.weight.square().sum() * 0
    torch.manual_seed(0)
    both = lambda model, batch: model(batch).square().mean() + model(2 * batch).mean()
    records = measured(line(1.0, 1.0), both, normal(32, 1), Asymmetry(symmetries=(ODD,)), steps=1)
    assert "no function of the claim's output" in records["asymmetry/cosine/odd"].note
    kept = measured(line(1.0, 1.0), loss, normal(32, 1), Asymmetry(symmetries=(ODD,)), steps=1)
    assert kept["asymmetry/share/odd"].status == "ok"


def test_a_random_loss_has_no_split_and_its_data_are_measured_all_the_same(tmp_path: Path) -> None:
    count = os.open(tmp_path / "count", os.O_CREAT | os.O_RDWR)  # which nobody can put back

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        os.write(count, b"x")
        return model(batch).square().mean() * 4.0 ** -os.lseek(count, 0, os.SEEK_CUR)

    probe = Asymmetry(symmetries=(ODD,))
    with pytest.warns(RuntimeWarning, match="another scale"):
        records = measured(line(1.0, 1.0), loss, normal(32, 1), probe, steps=1)
    assert records["asymmetry/cosine/odd"].status == "not_applicable"
    assert records["asymmetry/data/odd"].status == "ok"
    os.close(count)


def p_values(x, y, claim, seeds: int = 40) -> Tensor:
    return torch.tensor([
        data_asymmetry(x(s), y(s), claim, generator=torch.Generator().manual_seed(s)).p_value
        for s in range(seeds)
    ])  # fmt: skip


def test_symmetric_data_are_called_asymmetric_as_often_as_the_p_value_says() -> None:
    """Uniform p-values: 40 draws, z-bound 4 on their mean."""
    p = p_values(lambda s: normal(64, 2, seed=s), lambda s: None, TURN)
    assert abs(float(p.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(p))
    assert float((p <= 0.05).double().mean()) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(p))


def test_stretched_inputs_and_targets_that_look_one_way_are_violations() -> None:
    stretch = torch.tensor([3.0, 1.0])
    inputs = p_values(lambda s: normal(400, 2, seed=s) * stretch, lambda s: None, TURN, 5)
    assert float(inputs.max()) <= 0.01
    joint = p_values(
        lambda s: normal(256, 2, seed=s), lambda s: normal(256, 2, seed=s)[:, :1], TURN, 5
    )
    assert float(joint.max()) <= 0.01
    turned = Equivariance(SO2(), vectors, vectors)
    fair = p_values(lambda s: normal(256, 2, seed=s), lambda s: normal(256, 2, seed=s), turned, 5)
    assert float(fair.median()) > 0.1


def test_classes_of_mirrored_images_are_told_from_balanced_ones() -> None:
    x = normal(200, 1)
    balanced = (torch.arange(200) % 2).long()
    even = Equivariance(Sign(), Parity(), trivial)
    assert data_asymmetry(x, balanced, even).verdict == "holds"
    assert data_asymmetry(x, (x[:, 0] > 0).long(), even).verdict == "violated"


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(4, 2), None, "at least 8 samples, got 4"),
        (normal(20, 2), normal(10, 1), "expected 20 targets, got 10"),
    ],
)
def test_data_that_cannot_be_compared_are_refused(x, y, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_asymmetry(x, y, TURN)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="samples must be >= 2, got 1"):
        Asymmetry(samples=1)
    with pytest.raises(ValueError, match="expected symmetries among cyclic4"):
        Asymmetry(symmetries=("cyclic5",))


class Curves(nn.Module):
    """An odd output off by `offset` and an even one off by `slope` x, scaled by a gain."""

    def __init__(self, offset: float, slope: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {
            "odd": self.gain * x + self.offset,
            "even": weight * x.square() + self.slope * x,
        }


MIRROR = Equivariance(
    Sign(), Each((Parity(), trivial)), Each({"odd": Parity(), "even": trivial}), name="mirror"
)


def sum_of_squares(model: nn.Module, batch) -> Tensor:
    inputs, targets = batch
    y = model(*inputs)
    return sum((y[k] - targets[k]).square().mean() for k in y)


@pytest.mark.parametrize(("offset", "slope"), [(3.0, 0.4), (0.0, 0.0)])
def test_structured_claims_split_the_loss_as_the_closed_form_does(offset, slope) -> None:
    """Violation b^2 + d^2 E x^2: its gradient is (0, 2b, 2d E x^2), that of the rest (r, 0, 0)."""
    x, weight = normal(64, 1), normal(64, 1, seed=1)
    targets = {"odd": 2 * x, "even": weight * x.square()}
    batch = ((x, weight), targets)
    probes = (Asymmetry(symmetries=(MIRROR,)), EquivarianceError(symmetries=(MIRROR,)))
    records = [
        measured(Curves(offset, slope), sum_of_squares, batch, probe, steps=1) for probe in probes
    ]
    found = records[0] | records[1]
    power = float(x.square().mean())
    part = math.hypot(2 * offset, 2 * slope * power)
    rest = abs(2 * (1.5 - 2) * power)
    assert found["asymmetry/share/mirror"].value == pytest.approx(part / (part + rest), abs=1e-12)
    total = offset**2 + slope**2 * power + 0.25 * power
    price = found["equivariance/percent_of_loss/mirror"].value
    assert price == pytest.approx(100 * (offset**2 + slope**2 * power) / total, abs=1e-9)
    odd = found["equivariance/percent_of_loss/mirror/odd"].value
    assert odd == pytest.approx(100 * offset**2 / total, abs=1e-9)
    if offset:
        assert found["asymmetry/cosine/mirror"].value == pytest.approx(0.0, abs=1e-12)
        g = torch.tensor([2 * offset, 2 * slope * power])
        bend = float((g.square() * torch.tensor([2.0, 2 * power])).sum() / g.square().sum())
        assert found["asymmetry/rayleigh/mirror"].value == pytest.approx(bend, rel=1e-6)
    else:
        assert found["asymmetry/cosine/mirror"].status == "not_applicable"
    assert "of inputs and targets" in found["asymmetry/data/mirror"].note


def test_structured_targets_that_break_the_mirror_are_seen() -> None:
    x, weight = normal(200, 1), normal(200, 1, seed=1)
    kept = {"odd": 2 * x, "even": x.square()}
    broken = kept | {"even": x.square() + x}
    assert data_asymmetry((x, weight), kept, MIRROR).verdict == "holds"
    assert data_asymmetry((x, weight), broken, MIRROR).verdict == "violated"
    assert data_asymmetry((x, weight), None, MIRROR).verdict == "holds"
