"""The metric is the library's own error on all the data at once, however that is split."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from eqtoolbox.integrations.lightning import EqCallback
from eqtoolbox.integrations.torchmetrics import EquivarianceError
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.symmetry import SO2, Cyclic, Equivariance, Flip, equivariance_error
from eqtoolbox.symmetry.actions import action
from tests.conftest import blobs, mlp

TURNS = Equivariance(Cyclic(4), action.quarter_turn, action.trivial)


def rotated(g: Any, x: Tensor) -> Tensor:
    return x @ torch.as_tensor(g, dtype=x.dtype).T


PLANE = Equivariance(SO2(), rotated, action.trivial, name="plane")  # more elements than are drawn
SCALED = Equivariance(Flip(), lambda g, x: x.flip(1) if g else x,
                      lambda g, y: y.flip(1) if g else y, name="swap")  # fmt: skip
CASES: dict[str, tuple[Equivariance, nn.Module, Tensor]] = {}
torch.manual_seed(0)
CASES["enumerated"] = (TURNS, nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 2)),
                       torch.randn(23, 1, 6, 6))  # fmt: skip
CASES["sampled"] = (PLANE, mlp(2, 8, 3), torch.randn(23, 2))
CASES["equivariant output"] = (SCALED, mlp(3, 8, 3), torch.randn(23, 3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [(23,), (10, 13), (1, 15, 7)], ids=str)
def test_the_value_is_that_of_all_the_data_at_once(case: str, sizes: tuple[int, ...]) -> None:
    claim, model, x = CASES[case]
    whole = equivariance_error(model, x, claim)
    metric = EquivarianceError(claim)
    for part in x.split(sizes):
        metric.update(model, part)
    assert float(metric.compute()) == pytest.approx(whole.relative_error, rel=1e-6)
    assert whole.floor / 5 < float(metric.floor) < 5 * whole.floor
    assert metric.verdict() == whole.verdict == "violated"


@pytest.mark.parametrize("case", CASES)
def test_processes_add_up_to_the_same_value(case: str) -> None:
    """Each process its share: states are reduced as torchmetrics reduces them."""
    claim, model, x = CASES[case]
    shares = [EquivarianceError(claim), EquivarianceError(claim)]
    shares[0].update(model, x[:9])
    shares[1].update(model, x[9:])
    one = shares[0]
    together = [torch.stack([getattr(m, n) for m in shares]) for n in one._defaults]
    for name, states in zip(one._defaults, together, strict=True):
        setattr(one, name, one._reductions[name](states))
    assert float(one.floor) == max(float(f) for f in together[2])
    whole = equivariance_error(model, x, claim).relative_error
    assert float(one.compute()) == pytest.approx(whole, rel=1e-6)


def test_a_mean_of_errors_would_not_be_that_value() -> None:
    claim, model, x = CASES["enumerated"]
    parts = [x[:3], 20.0 * x[3:]]
    metric = EquivarianceError(claim)
    for part in parts:
        metric.update(model, part)
    errors = [equivariance_error(model, part, claim).relative_error for part in parts]
    whole = equivariance_error(model, torch.cat(parts), claim).relative_error
    assert float(metric.compute()) == pytest.approx(whole, rel=1e-6)
    assert sum(errors) / 2 != pytest.approx(whole, rel=1e-3)


def test_a_symmetry_that_is_built_in_holds_and_reset_forgets() -> None:
    built_in = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    metric = EquivarianceError(TURNS)
    metric.update(built_in, torch.randn(8, 1, 6, 6))
    assert metric.verdict() == "holds" and float(metric.compute()) < 3 * float(metric.floor)
    metric.reset()
    assert not metric.squares.any() and not metric.floor.any()


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(),
                          nn.Linear(64, 2))  # fmt: skip
    model[1].eval()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    metric = EquivarianceError(TURNS)
    metric.update(model, x)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    value = float(metric.compute())
    model.eval()
    assert value == pytest.approx(equivariance_error(model, x, TURNS).relative_error, rel=1e-6)


def test_several_outputs_and_wrong_arguments_are_refused() -> None:
    metric = EquivarianceError(TURNS)
    with pytest.raises(TypeError, match="one output tensor"):
        metric.update(lambda x: (x.sum((1, 2, 3)), x.mean((1, 2, 3))), torch.randn(4, 1, 6, 6))
    with pytest.raises(ValueError, match="samples must be an integer >= 2, got 1"):
        EquivarianceError(TURNS, samples=1)
    with pytest.raises(TypeError, match="claim"):
        EquivarianceError("cyclic4")


@pytest.mark.filterwarnings("ignore:(?!eqtoolbox)")
def test_in_lightning_it_is_logged_and_a_probe_adds_nothing_to_it(tmp_path: Any) -> None:
    """Also where training_step itself updates it, which a probe evaluates again."""
    mirror = Equivariance(Flip(), lambda g, x: x.flip(-1) if g else x, action.trivial)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = mlp(6, 8, 3)
            self.metrics = MetricCollection({"error": EquivarianceError(mirror)})
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.metrics.update(self.net, batch[0])
            self.seen.append(float(self.metrics["error"].squares.sum()))
            self.log_dict(self.metrics, on_step=False, on_epoch=True)
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(*callbacks: Any) -> tuple[list[float], float]:
        module = Module()
        trainer = pl.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, logger=False, max_epochs=1,
            callbacks=[*callbacks],
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(*blobs(48)), batch_size=16))
        return module.seen, float(trainer.callback_metrics["error"])

    watching = EqCallback(
        run_dir=tmp_path / "run", probes=[Curvature(k=1)], schedule=1, budget=None,
        on_error="raise",
    )  # fmt: skip
    assert fit(watching) == fit()
