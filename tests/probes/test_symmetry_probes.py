"""The equivariance and law probes on models whose answer is known."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.implicit_bias import bias
from eqtoolbox.probes.noether import Noether
from eqtoolbox.record.record import Record
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights.families.head import HeadScale
from tests.conftest import blobs, mlp


def run(
    model: nn.Module, probe: eq.Probe, batch: Any, loss: Any = None, steps: int = 1
) -> dict[str, Record]:
    """Records of the last step by name."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.05), MemorySink()
    loss = loss or (lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    with eq.attach(
        model, optimizer, probes=[probe], budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(steps):
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
    return {r.name: r for r in sink.records if r.step == steps - 1}


def images(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, height, width, generator=generator)
    return x, torch.randint(0, 3, (12,), generator=generator)


class TurnAveraged(nn.Module):
    """Invariant under quarter turns by averaging over them; dropout is off in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.net(torch.rot90(x, k, (2, 3))) for k in range(4)) / 4  # type: ignore[return-value]


def test_an_averaged_network_holds_its_group_and_breaks_the_others() -> None:
    torch.manual_seed(0)
    records = run(TurnAveraged(), EquivarianceError(), images())
    assert records["equivariance/relative_error/cyclic4"].verdict == "holds"
    assert records["equivariance/percent_of_loss/cyclic4"].value == pytest.approx(0, abs=1e-3)
    assert records["equivariance/relative_error/flip"].verdict == "violated"
    assert records["equivariance/relative_error/translation"].verdict == "violated"
    assert records["equivariance/percent_of_loss/flip"].value > 0.1
    assert records["equivariance/relative_error/cyclic4"].mode == "eval"


def test_images_to_images_are_compared_with_the_turned_output() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    x, _ = images()
    records = run(model, EquivarianceError(), (x, x), loss=lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert records["equivariance/relative_error/translation"].verdict == "holds"
    assert records["equivariance/relative_error/cyclic4"].verdict == "violated"


@pytest.mark.parametrize(
    ("batch", "model", "why"),
    [
        (images(8, 6), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), "height == width, got 8x6"),
        (blobs(), mlp(6, 3), "acts on images"),
    ],
    ids=["not square", "no images"],
)
def test_what_does_not_apply_says_why(batch: Any, model: nn.Module, why: str) -> None:
    record = run(model, EquivarianceError(symmetries=("cyclic4",)), batch)[
        "equivariance/relative_error/cyclic4"
    ]
    assert record.status == "not_applicable"
    assert why in record.note


class Predicting(nn.Module):
    """Integer outputs in evaluation mode, as deployed classifiers have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits if self.training else logits.argmax(1)


def test_integer_outputs_are_not_applicable() -> None:
    record = run(
        Predicting(), EquivarianceError(symmetries=("flip",)), images(),
        loss=lambda m, b: F.cross_entropy(m(b[0]).float().reshape(12, -1), b[1] * 0),
    )["equivariance/relative_error/flip"]  # fmt: skip
    assert record.status == "not_applicable"
    assert "floating point" in record.note


def test_unknown_symmetries_are_refused() -> None:
    with pytest.raises(ValueError, match="expected symmetries among"):
        EquivarianceError(symmetries=("cyclic5",))
    with pytest.raises(ValueError, match="samples must be >= 2"):
        EquivarianceError(samples=0)


def test_laws_hold_during_training_and_the_gradient_predicts_the_curvature() -> None:
    torch.manual_seed(0)
    records = run(mlp(6, 16, 8, 3), Noether(), blobs(), steps=5)
    for order in ("first", "second"):
        for family in ("rescale", "translation"):
            assert records[f"noether/{order}_order/{family}"].verdict == "holds"
    measured = records["noether/rayleigh/rescale"]
    predicted = records["noether/predicted_rayleigh/rescale"]
    assert measured.value == pytest.approx(predicted.value, rel=1e-3)
    assert records["noether/dimension/rescale"].value == 24


@pytest.mark.usefixtures("claimed")
def test_brackets_of_symmetries_close_and_those_of_another_network_do_not() -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    probe = Noether()
    records = run(linear, probe, blobs(), steps=2)
    assert records["noether/bracket"].verdict == "holds"
    curved = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    squared = lambda m, b: F.cross_entropy(m[2](m[1](m[0](b[0]).tanh())), b[1])
    records = run(curved, probe, blobs(), loss=squared)
    assert records["noether/bracket"].verdict == "violated"


def test_the_gradient_alone_bounds_the_sharpness_from_below() -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    records = run(model, Noether(), blobs(), steps=3)
    bound = records["noether/sharpness_bound"]
    families = [n for n in records if n.startswith("noether/predicted_rayleigh/")]
    assert bound.value == max(records[n].value for n in families)
    assert bound.note.startswith("along ")
    top = run(model, Curvature(k=1), blobs())["curvature/sharpness"].value
    assert bound.value < top


@pytest.mark.usefixtures("claimed")
def test_a_law_of_another_network_is_violated() -> None:
    """Negative control: the ReLU network's symmetries claimed of a network with GELU."""
    torch.manual_seed(0)
    relu = Noether()
    run(mlp(6, 16, 8, 3), relu, blobs())
    records = run(mlp(6, 16, 8, 3, activation=nn.GELU), relu, blobs())
    assert records["noether/first_order/rescale"].verdict == "violated"
    assert records["noether/second_order/rescale"].verdict == "violated"


def test_a_network_without_symmetries_is_not_applicable() -> None:
    loss = lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1]).float())
    records = run(mlp(6, 8, 3, activation=nn.GELU), Noether(), blobs(), loss=loss)
    assert records["noether/second_order"].status == "not_applicable"


class Sloped(nn.Module):
    """A head whose output is bent: scaling the head no longer scales the output."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def biased(bent: bool) -> dict[str, Any]:
    """c, grad c and g, H K + (DK)^T g of head scale, by dense float64 differentiation."""
    torch.manual_seed(0)
    model = Sloped(bent).double()
    x, y = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        bend = 0.3 * model.head.weight.square().sum() if model.bent else 0.0
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + bend

    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    member = HeadScale(
        name="head",
        dimension=1,
        rates=(("head.weight", 1.0), ("head.bias", 1.0)),
        status="verified",
    )
    c = [torch.ones(1, dtype=torch.float64)]
    objective = Objective(
        model=model, loss_fn=loss_fn, batch=(x, y), random=RandomState(), buffers={}
    )
    found = bias(objective, params, [member], c)
    flat = torch.cat([p.reshape(-1) for p in params.values()])
    sizes = [p.numel() for p in params.values()]

    def whole(v: Tensor) -> Tensor:
        parts = dict(zip(params, v.split(sizes), strict=True))
        return objective.loss({n: p.view_as(params[n]) for n, p in parts.items()})

    g = torch.func.grad(whole)(flat)
    H = torch.autograd.functional.hessian(whole, flat)
    moving = torch.cat([torch.full((n,), float(k > 1)) for k, n in enumerate(sizes)]).double()
    return {
        "first": float(g @ (moving * flat)) - found.value,
        "second": H @ (moving * flat)
        + moving * g
        - torch.cat([found.gradient[n].reshape(-1) for n in params]),
        "scale": float(g.norm() * flat.norm()),
    }


def test_the_bias_of_an_equivariance_is_read_off_the_outputs() -> None:
    law = biased(bent=False)
    assert abs(law["first"]) < 1e-13 * law["scale"]
    assert float(law["second"].norm()) < 1e-12 * law["scale"]


def test_a_loss_that_sees_the_head_itself_breaks_the_law_of_the_outputs() -> None:
    law = biased(bent=True)
    assert abs(law["first"]) > 1e-2 * law["scale"]
    assert float(law["second"].norm()) > 1e-2 * law["scale"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_loss_that_differentiates_the_model_breaks_no_law_of_its_outputs(inside: bool) -> None:
    """Its slopes are beside the output, which is not all that the loss depends on."""

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        x = b[0].clone().requires_grad_()
        y = m(x)
        fit = nn.functional.cross_entropy(y, b[1])
        if not inside:
            return fit
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return fit + slope.square().mean()

    torch.manual_seed(0)
    model, sink = Sloped(bent=False), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(24, 5), torch.randint(0, 3, (24,))
    with eq.attach(
        model, optimizer, probes=[Noether()], budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        monitor.loss(loss)(model, batch).backward()
        optimizer.step()
    records = {r.name: r for r in sink.records}
    law = records["noether/first_order/head_scale"]
    if inside:
        assert law.status == "not_applicable"
        assert "differentiates the model inside" in law.note
    else:
        assert law.verdict == "holds"


def test_a_loss_without_second_derivatives_says_so_of_its_outputs_law() -> None:
    torch.manual_seed(0)
    model, sink = Sloped(bent=False), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        spoken = m(x).log_softmax(1)[:, None]
        return nn.functional.ctc_loss(spoken, torch.tensor([[1, 2, 1]]), (24,), (3,))

    with eq.attach(
        model, optimizer, probes=[Noether()], budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        monitor.loss(loss)(model, torch.randn(24, 5)).backward()
        optimizer.step()
    law = {r.name: r for r in sink.records}["noether/first_order/head_scale"]
    assert law.status == "not_applicable"
    assert "no derivative of the law of equivariances" in law.note


def test_laws_of_equivariances_hold_over_the_micro_batches_of_a_step() -> None:
    torch.manual_seed(0)
    model, sink = Sloped(bent=False), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(24, 5), torch.randint(0, 3, (24,))
    with eq.attach(model, optimizer, probes=[Noether()], budget=None, sinks=[sink]) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for part in range(3):
            rows = slice(8 * part, 8 * part + 8)
            (loss_fn(model, (x[rows], y[rows])) / 3).backward()
        optimizer.step()
    records = {r.name: r for r in sink.records}
    for family in ("head_scale", "head_shift", "head_rotation"):
        for order in ("first", "second"):
            assert records[f"noether/{order}_order/{family}"].verdict == "holds"
        measured = records[f"noether/rayleigh/{family}"]
        predicted = records[f"noether/predicted_rayleigh/{family}"]
        assert measured.value == pytest.approx(predicted.value, rel=1e-3, abs=3 * measured.floor)


def points() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def born_at_zero() -> nn.Module:
    model = network()
    for parameter in model[2].parameters():
        nn.init.zeros_(parameter)
    return model


def test_drifts_of_parameters_born_at_zero_are_relative_to_their_first_size() -> None:
    records = run(born_at_zero(), Conservation(), points())
    assert all(r.status == "ok" for r in records.values() if r.probe == "conservation")
    assert records["conservation/drift/translation"].value < 1e-6  # conserved by SGD
    assert 0.1 < records["conservation/drift/head_shift"].value < 1.1
    assert 0.1 < records["conservation/worst_drift/head_shift"].value < 1.1
    assert 0.1 < records["conservation/drift/head_scale"].value < 1.1
    closures = [r for r in records.values() if r.name.startswith("conservation/closure")]
    assert closures and all(r.verdict == "holds" for r in closures)


def test_a_family_whose_parameters_are_zero_says_so() -> None:
    records = run(born_at_zero(), Noether(), points())
    resting = records["noether/first_order/head_scale"]
    assert resting.status == "not_applicable"
    assert "are zero" in resting.note
    assert records["noether/first_order/rescale"].verdict == "holds"


def test_the_budget_closes_over_a_step_that_outgrows_the_parameters() -> None:
    records = run(
        network(), Conservation(), points(), loss=lambda m, b: 1e6 * m(b[0]).square().mean()
    )
    closures = [r for r in records.values() if r.name.startswith("conservation/closure")]
    assert closures and all(r.verdict == "holds" for r in closures)
