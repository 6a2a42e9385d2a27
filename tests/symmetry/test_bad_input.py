"""Discovery says what it could not see, and what it saw stays right."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import eqtoolbox as eq
from eqtoolbox.command.model import example_batch, load
from tests.symmetry.expected import counts

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


class Resisting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("cannot be recorded")
        return x


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h) if float(h.detach().sum()) > 0 else self.b(h.clamp(max=0.1))


def relu_pair(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), *between, nn.Linear(5, 3))


def test_what_cannot_be_recorded_is_inspected_layer_by_layer() -> None:
    model = nn.Sequential(relu_pair(nn.ReLU()), Resisting())
    found = eq.weights.discover(model, (X, Y))
    assert counts(found) == {"rescale": 5, "translation": 6, "permutation": 4}
    assert "could not be recorded (RuntimeError: cannot be recorded)" in found.notes[0]
    spoilt = nn.Sequential(relu_pair(nn.Dropout(0.0), nn.GELU(), nn.ReLU()), Resisting())
    assert "rescale" not in counts(eq.weights.discover(spoilt, (X, Y)))


def test_order_of_layers_is_only_a_proposal() -> None:
    """Two layers that look like neighbours, with something between them at run time."""

    class Bent(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)).clamp(max=0.1))

    torch.manual_seed(0)
    bent = Bent(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    found = eq.weights.discover(nn.Sequential(bent, Resisting()), (X, Y))
    assert not any(s.family == "rescale" and s.status != "broken" for s in found)


def test_branches_on_data_are_followed_and_named() -> None:
    torch.manual_seed(0)
    found = eq.weights.discover(Branching(), (X, Y))
    assert any("depends on the data" in note for note in found.notes)


def test_operations_without_a_rule_and_parameters_read_twice_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.idle = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.special.i0(self.a(torch.relu(self.a(x)))))

    torch.manual_seed(0)
    notes = " ".join(eq.weights.discover(Odd(), (X, Y)).notes)
    assert "no rule for i0" in notes
    assert "read more than once, so that all uses must agree: a.weight, a.bias" in notes
    assert "not read by this loss, left out: idle" in notes


def test_in_place_activations_give_the_same_group() -> None:
    plain = counts(eq.weights.discover(relu_pair(nn.ReLU()), (X, Y)))
    assert counts(eq.weights.discover(relu_pair(nn.ReLU(inplace=True)), (X, Y))) == plain


def test_inputs_of_a_model_without_a_batch_are_guessed_or_asked_for() -> None:
    assert example_batch(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).shape == (4, 3, 32, 32)
    assert example_batch(nn.Embedding(7, 3)).max() < 7
    with pytest.raises(ValueError, match=r"return \(model, batch\)"):
        example_batch(nn.Bilinear(3, 4, 5))


@pytest.mark.parametrize("inputs", ["X", "(X, X.flip(0))"], ids=["one", "several"])
def test_a_factory_of_model_inputs_targets_gives_targets_in_the_batch(
    tmp_path: Path, inputs: str
) -> None:
    kind = "Pair()" if "," in inputs else "relu_pair(nn.ReLU())"
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.symmetry.test_bad_input import *\n"
        f"def build():\n    torch.manual_seed(0)\n    return {kind}, {inputs}, Y\n"
        "def summed(model, batch):\n    return model(batch).square().sum()\n"
        "def own():\n    return relu_pair(nn.ReLU()), X, summed\n"
    )
    model, batch, loss_fn, _ = load(f"{file}:build")
    assert loss_fn is None and torch.equal(batch[1], Y)
    assert counts(eq.weights.discover(model, batch))["rescale"] == 5
    assert load(f"{file}:own")[2].__name__ == "summed"


def test_targets_in_the_place_of_a_loss_are_told_where_they_belong() -> None:
    with pytest.raises(TypeError, match=r"got Tensor; targets belong in the batch: \(inputs"):
        eq.weights.discover(relu_pair(nn.ReLU()), X, Y)


def test_a_loss_that_is_not_finite_is_refused_rather_than_verified() -> None:
    with pytest.raises(ValueError, match="expected a finite loss, got nan"):
        eq.weights.discover(relu_pair(nn.ReLU()), (torch.full_like(X, torch.nan), Y))


def test_what_was_found_prints_as_a_table() -> None:
    head, *rows = str(eq.weights.discover(relu_pair(nn.ReLU()), (X, Y))).splitlines()
    assert head.split() == ["family", "name", "dimension", "status", "residual"]
    assert rows[0].split()[:4] == ["rescale", "0-2", "5", "verified"]


def test_a_batch_of_one_is_analysed_with_running_statistics_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    found = eq.weights.discover(model, (X[:1], Y[:1]))
    assert "running statistics" in found.notes[-1] and model[1].training
    assert "scale" not in counts(found) and counts(found)["gain_rescale"] == 5
    assert counts(eq.weights.discover(model, (X, Y)))["scale"] == 5


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.h(torch.relu(self.a(first) + self.b(second)))


@pytest.mark.parametrize(
    "batch",
    [(X, X.flip(0)), (X, X.flip(0), Y), ((X, X.flip(0)), Y), ({"first": X, "second": X}, Y)],
    ids=["inputs alone", "inputs and targets", "a tuple of inputs", "keywords"],
)
def test_models_of_several_inputs_take_them_as_a_tuple_or_by_name(batch: tuple) -> None:
    torch.manual_seed(0)
    assert counts(eq.weights.discover(Pair(), batch))["rescale"] == 5


def test_an_output_that_is_no_tensor_asks_for_a_loss() -> None:
    with pytest.raises(ValueError, match=r"one tensor as output, got tuple: give loss_fn"):
        eq.weights.discover(nn.LSTM(6, 4), X[None])


def test_a_keras_model_is_told_its_adapter() -> None:
    foreign = type("Dense", (nn.Linear,), {"__module__": "keras.src.layers"})(3, 2)
    with pytest.raises(ValueError, match=r"KerasModel\(model\)"):
        eq.weights.discover(foreign, torch.ones(2, 3))
