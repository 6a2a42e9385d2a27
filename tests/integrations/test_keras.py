"""A Keras model on torch with the callback: same training, right numbers, resumed runs."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.integrations.keras import EqCallback
from eqtoolbox.integrations.keras_model import KerasModel
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.prediction import predicting
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import blobs
from tests.integrations.dense import sharpness
from tests.integrations.records import rows
from tests.neutrality.test_neutrality import digest

pytestmark = pytest.mark.filterwarnings("ignore")


class Warming(keras.layers.Layer):
    """Lets more of its input through with each training call: a state that every call moves."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign(self.calls + 1.0)
        return x[:, :] * keras.ops.tanh(self.calls * keras.ops.arange(1.0, 1.0 + x.shape[-1]) / 9)


def network(dropout: float = 0.0) -> Any:
    keras.utils.clear_session()  # names of layers start anew, as in a new process
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-2)),
            *([layers.BatchNormalization(), Warming(), layers.Dropout(dropout)] if dropout else []),
            layers.Dense(5, activation="tanh", activity_regularizer=keras.regularizers.L2(1e-3)),
            layers.Dense(3),
        ]
    )  # fmt: skip


class Trail(keras.callbacks.Callback):
    """Digest of everything after each batch, and the weights before it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.weights: list[dict[str, Tensor]] = []
        self.others: list[dict[str, Tensor]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        weights = {v.path: v.value.detach().clone() for v in self.model.trainable_variables}
        self.weights.append(weights)
        others = {v.path: v.value.clone() for v in self.model.non_trainable_variables}
        self.others.append(others)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        variables = [*self.model.variables, *self.model.optimizer.variables]
        self.rows.append(
            digest(
                [v.value for v in variables], logs,
                [v.value.grad for v in self.model.trainable_variables],
                [float(x) for x in self.model.losses], torch.get_rng_state(), np.random.get_state(),
            )
        )  # fmt: skip


def fit(
    *callbacks: Any,
    dropout: float = 0.0,
    optimizer: Any = None,
    epochs: int = 2,
    shuffle: bool = True,
    compile: Any = None,
) -> Any:
    model = network(dropout)
    model.compile(
        optimizer=(optimizer or (lambda: keras.optimizers.SGD(0.1)))(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"],
    )  # fmt: skip
    trail = Trail()
    x, y = (t.numpy() for t in blobs(32))
    model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        shuffle=shuffle,
        verbose=0,
        callbacks=[*callbacks, trail],
    )
    model.trail = trail
    return model


def callback(run_dir: Path | None, **options: Any) -> EqCallback:
    probes = [Curvature(k=1), Conservation()]
    defaults: dict[str, Any] = {"probes": probes, "schedule": 1, "budget": None}
    return EqCallback(run_dir=run_dir, on_error="raise", **{**defaults, **options})


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_is_bit_identical_and_the_loss_is_the_one_that_trains(
    tmp_path: Path, dropout: float
) -> None:
    watched = fit(callback(tmp_path / "run"), dropout=dropout)
    alone = fit(dropout=dropout)
    assert watched.trail.rows == alone.trail.rows
    assert len(alone.trail.rows) == 4
    run = eq.Run(tmp_path / "run")
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx(
        [1.0] * len(run.series("curvature/sharpness")[0]), abs=1e-6
    )
    assert list(run.series("curvature/sharpness")[0]) == list(range(4))
    assert "train_step" not in watched.__dict__
    assert "compute_loss" not in watched.__dict__


def dense(weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> float:
    """The same network and loss written in torch, without Keras."""
    x, y = batch[0].double(), batch[1]
    w = {n.split("/", 1)[1] if n.startswith("sequential") else n: t for n, t in weights.items()}
    names = list(w)

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.ParameterList([nn.Parameter(t.double()) for t in w.values()])

    def loss(m: nn.Module) -> Tensor:
        k1, b1, k2, b2, k3, b3 = m.p
        hidden = torch.tanh(torch.tanh(x @ k1 + b1) @ k2 + b2)
        activity = 1e-3 * hidden.square().sum() / len(x)
        return F.cross_entropy(hidden @ k3 + b3, y) + 1e-2 * k1.square().sum() + activity

    return sharpness(Twin(), loss, {f"p.{i}": w[n] for i, n in enumerate(names)})


def test_the_end_of_the_fit_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, start = [], EqCallback.start
    monkeypatch.setattr(
        EqCallback, "start", lambda *a, steps, **k: (told.append(steps), start(*a, steps=steps))[1]
    )
    fit(callback(tmp_path / "run"), epochs=3)
    assert told == [6]


def test_the_sharpness_is_that_of_a_dense_hessian_with_all_regularisers(tmp_path: Path) -> None:
    model = fit(callback(tmp_path / "run"), shuffle=False)
    run = eq.Run(tmp_path / "run")
    values, losses = run.series("curvature/sharpness")[1], run.series("training/loss")[1]
    x, y = blobs(32)
    for step in (0, 3):
        i = 16 * (step % 2)
        expected = dense(model.trail.weights[step], (x[i : i + 16], y[i : i + 16]))
        assert values[step] == pytest.approx(expected, rel=1e-3)
    assert len(losses) == 4


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_a_fit_resumed_by_backup_and_restore_gives_the_records_of_an_uninterrupted_one(
    tmp_path: Path, save_freq: Any
) -> None:
    fit(callback(tmp_path / "whole"), epochs=3, shuffle=False)
    backup = lambda: keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(RuntimeError, match="power cut"):
        watching = callback(tmp_path / "cut", save_freq=save_freq)
        fit(backup(), watching, Stop(), epochs=3, shuffle=False)
    watching.finish()
    fit(backup(), callback(tmp_path / "cut", save_freq=save_freq), epochs=3, shuffle=False)
    assert {r.segment for r in eq.Run(tmp_path / "cut").records()} == {0, 1}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


class Predicted(Probe):
    """Sum of the outputs in evaluation mode at the parameters before the step."""

    name = "predicted"
    headline = "sum"
    mode = "eval"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        total = lambda f: f.of_inputs(f.inputs).sum().item()
        yield Measurement("sum", predicting(snapshot.objective, snapshot.before, total))


def test_predictions_are_those_of_the_weights_before_the_step_in_evaluation_mode(
    tmp_path: Path,
) -> None:
    watching = callback(tmp_path / "run", probes=[Predicted()])
    model = fit(watching, dropout=0.5, shuffle=False)
    values = eq.Run(tmp_path / "run").series("predicted/sum")[1]
    x, _ = blobs(32)
    for variable in model.trainable_variables:
        variable.assign(model.trail.weights[3][variable.path])
    for name, value in model.trail.others[3].items():
        next(v for v in model.variables if v.path == name).assign(value)
    assert values[3] == pytest.approx(model(x[16:], training=False).sum().item(), rel=1e-5)


def one_layer(optimizer: Any, run_dir: Path) -> eq.Run:
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, kernel_initializer="ones")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    x, y = (t.numpy() for t in blobs(32))
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback(run_dir)])
    return eq.Run(run_dir)


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "sgd": (lambda: keras.optimizers.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "nesterov": (
        lambda: keras.optimizers.SGD(0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
    ),
    "adam": (lambda: keras.optimizers.Adam(0.01), lambda p: torch.optim.Adam(p, 0.01, eps=1e-7)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_edge_of_stability_is_that_of_the_same_optimizer_in_torch(
    tmp_path: Path, name: str
) -> None:
    ours, theirs = OPTIMIZERS[name]
    run = one_layer(ours(), tmp_path / "keras")
    model, criterion = nn.Linear(6, 3), nn.CrossEntropyLoss()
    nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    optimizer = theirs(model.parameters())
    with eq.attach(
        model, optimizer, criterion=criterion, run_dir=tmp_path / "torch", schedule=1, budget=None,
        probes=[Curvature(k=1)],
    ):  # fmt: skip
        x, y = blobs(32)
        for i in range(0, 32, 8):
            criterion(model(x[i : i + 8]), y[i : i + 8]).backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = eq.Run(tmp_path / "torch").series("curvature/stability")[1]
    assert len(expected) == 4
    assert run.series("curvature/stability")[1] == pytest.approx(list(expected), rel=1e-3)


def test_what_keras_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"loss_fn and criterion are not used with Keras"):
        EqCallback(criterion=nn.CrossEntropyLoss())
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"torch backend, got jax; set the .*KERAS_BACKEND"):
        EqCallback()


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_the_model_to_the_next_one(tmp_path: Path) -> None:
    model = fit(epochs=1)
    x, y = (t.numpy() for t in blobs(32))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[callback(tmp_path / "first"), Interrupt()])
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[callback(tmp_path / "second")])
    first, second = eq.Run(tmp_path / "first"), eq.Run(tmp_path / "second")
    assert first.info["finished"]
    assert list(first.series("curvature/sharpness")[0]) == [2]
    assert list(second.series("curvature/sharpness")[0]) == [3, 4]
    assert not {"train_step", "compute_loss"} & vars(model).keys()


def test_a_keras_model_has_the_symmetries_of_its_torch_twin() -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(5), layers.Dense(3)]
    )
    x, y = torch.randn(16, 6), torch.arange(16) % 3
    dimensions: Counter[str] = Counter()
    for symmetry in eq.weights.discover(KerasModel(net), (x, y)):
        assert symmetry.status == "verified"
        dimensions[symmetry.family] += symmetry.dimension
    assert dimensions["rescale"] == 8
    assert dimensions["general_linear"] == 25
    assert dimensions["translation"] == 6
    assert dimensions["bias_shift"] == 5
    with pytest.raises(ValueError, match="KerasModel"):
        eq.weights.discover(net, (x, y))


def normalised(epsilon: float) -> KerasModel:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = [layers.Dense(5), layers.BatchNormalization(epsilon=epsilon), layers.ReLU()]
    return KerasModel(keras.Sequential([keras.Input((6,)), *net, layers.Dense(3)]))


def test_a_larger_epsilon_of_keras_leaves_the_scales_that_the_default_leaves() -> None:
    data = torch.randn(16, 6), torch.arange(16) % 3
    for epsilon in (1e-3, 1.1e-3):
        found = eq.weights.discover(normalised(epsilon), data)
        left = {s.family: s for s in found if s.status == "approximate"}
        assert left.keys() == {"scale", "homogeneity"} and left["scale"].dimension == 5
        assert all(s.epsilon == pytest.approx(s.residual, rel=1e-6) for s in left.values())


def test_a_batch_of_one_that_a_normalisation_blanks_out_is_named() -> None:
    one, many = (torch.randn(1, 6), torch.arange(1)), (torch.randn(16, 6), torch.arange(16) % 3)
    noted = lambda model, batch: (
        "variance of zero" in " ".join(eq.weights.discover(model, batch).notes)
    )
    assert noted(normalised(1e-3), one)
    assert not noted(normalised(1e-3), many)
    assert not noted(normalised(1e-3).eval(), one)
