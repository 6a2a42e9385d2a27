"""What users hand in by mistake is named at the first probe, with the remedy, and stops nothing."""

import re

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.symmetry import CyclicTranslation, Each, Equivariance, Sign, Symmetric, Translations
from eqtoolbox.symmetry.actions.action import flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.resampling import FourierShift
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Cyclic, Flip
from tests.probes.test_equivariance_probe import measured

# that a claim of the user's is not measured is a warning, too: see tests/probes/test_parts.py
pytestmark = pytest.mark.filterwarnings("ignore:eqtoolbox. the claim:RuntimeWarning")


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def flat(size: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 3))


LOSS = lambda model, batch: model(batch).square().mean()
TURN = lambda act, out=trivial: Equivariance(Cyclic(4), act, out, name="claim")


@pytest.mark.parametrize(
    ("claim", "shape", "note"),
    [
        (TURN(lambda g, x: torch.rot90(x, g * g, (-2, -1))), (8, 1, 4, 4),
         r"input_action of cyclic4 .* breaks S_g.* does not belong to it"),
        (TURN(quarter_turn, quarter_turn), (8, 1, 4, 4),
         r"output_action of cyclic4 .* use trivial where there is no image"),
        (TURN(quarter_turn, lambda g, y: y[:, :2] if g else y), (8, 1, 4, 4),
         r"output_action .* breaks"),
        ("cyclic4", (8, 1, 4, 6), "quarter turns need height == width, got 4x6"),
        (Equivariance(CyclicTranslation(8), roll, trivial, name="claim"), (8, 1, 9, 9),
         "CyclicTranslation of the image size"),
        (Equivariance(Symmetric(5), Permute(1), trivial, name="claim"), (8, 6, 2),
         r"take Symmetric\(6\) or another dimension"),
        ("flip", (8, 6), r"acts on images \(batch, channels, height, width\)"),
    ],
)  # fmt: skip
def test_claims_that_do_not_fit_are_named_at_the_first_probe(claim, shape, note: str) -> None:
    size = int(torch.tensor(shape[1:]).prod())
    probe = EquivarianceError(symmetries=(claim,))
    records = measured(flat(size), LOSS, images(*shape), probe, steps=1)
    name = claim if isinstance(claim, str) else claim.name
    found = records[f"equivariance/relative_error/{name}"]
    assert found.status == "not_applicable"
    assert re.search(note, found.note)


def test_one_bad_claim_leaves_the_others_measured() -> None:
    bad = TURN(lambda g, x: torch.rot90(x, g * g, (-2, -1)))
    probe = EquivarianceError(symmetries=(bad, "flip"))
    records = measured(flat(16), LOSS, images(8, 1, 4, 4), probe, steps=1)
    assert records["equivariance/relative_error/claim"].status == "not_applicable"
    assert records["equivariance/relative_error/flip"].verdict == "violated"


class Noisy(nn.Module):
    """Dropout that forgets training=self.training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.5)


def test_a_model_random_in_eval_mode_is_never_judged_and_is_named() -> None:
    claim = Equivariance(Sign(), Parity(), trivial, name="even")
    torch.manual_seed(0)
    records = measured(
        Noisy(), LOSS, images(64, 4), EquivarianceError(symmetries=(claim,)), steps=1
    )
    found = records["equivariance/relative_error/even"]
    assert found.verdict == "unresolved"
    assert "function is random" in found.note
    assert "training=self.training" in found.note


def test_nan_outputs_are_a_status() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).log()

    claim = Equivariance(Sign(), Parity(), trivial, name="even")
    probe = EquivarianceError(symmetries=(claim,))
    loss = lambda model, batch: model(batch).nan_to_num().square().mean()
    records = measured(Root(), loss, images(8, 4), probe, steps=1)
    found = records["equivariance/relative_error/even"]
    assert found.status == "non_finite"
    assert "got NaN or infinity from f(x)" in found.note


def test_integer_inputs_are_named() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 2))
    claim = Equivariance(Symmetric(5), Permute(1), trivial, name="tokens")
    batch = torch.randint(0, 10, (8, 5))
    probe = EquivarianceError(symmetries=(claim,))
    found = measured(model, LOSS, batch, probe, steps=1)["equivariance/relative_error"]
    assert found.status == "not_applicable"
    assert "torch.int64" in found.note and "Equivariance with Each" in found.note


def test_an_empty_graph_is_named() -> None:
    claim = Equivariance(Symmetric(3), Each({"x": Permute(-2)}), trivial)
    empty = {"x": torch.zeros(1, 0, 3)}
    with pytest.raises(ValueError, match=r"\(1, 0, 3\): an empty graph or set has no symmetry"):
        equivariance_error(lambda g: g["x"].sum(1), empty, claim)
    nodes = {"x": torch.zeros(1, 0, 3), "box": torch.ones(1, 3)}
    boxed = Equivariance(Symmetric(3), Each({"x": Permute(-2), "box": trivial}), Permute(-2))
    with pytest.raises(ValueError, match=r"\(1, 0, 3\): an empty graph or set\? Leave it out"):
        equivariance_error(lambda g: g["x"], nodes, boxed)
    with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
        Symmetric(0)


def test_actions_without_a_derivative_say_so_and_finite_elements_still_measure() -> None:
    group = Translations((2.0, 2.0), whole=False)
    act = FourierShift()
    claim = Equivariance(group, lambda g, x: act(g, x), trivial, name="bare")
    probe = EquivarianceError(symmetries=(claim,))
    records = measured(flat(25), LOSS, images(8, 1, 5, 5), probe, steps=1)
    assert records["equivariance/relative_error/bare"].verdict == "violated"
    found = records["equivariance/lie_derivative/bare"]
    assert found.status == "not_applicable"
    assert "a zero derivative would not mean invariance" in found.note


class Wave(nn.Module):
    """Adds a pattern to images."""

    def __init__(self, size: float) -> None:
        super().__init__()
        half = torch.ones(4)
        self.pattern = nn.Parameter(size * torch.cat([half, -half]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pattern


def test_image_to_image_models_have_decibels_and_float64_settles_what_is_unresolved() -> None:
    probe = EquivarianceError(symmetries=("flip",), shadow=True)
    records = measured(Wave(0.05), LOSS, images(8, 1, 8, 8), probe, steps=1)
    assert records["equivariance/decibels/flip"].value == pytest.approx(26.02, abs=0.01)
    assert records["equivariance/decibels/flip"].unit == "dB"
    exact = measured(Wave(0.0), LOSS, images(8, 1, 8, 8), probe, steps=1)
    assert exact["equivariance/relative_error/flip"].value == 0
    assert "equivariance/decibels/flip" not in exact, "infinite, which is no failure to measure"
    tiny = measured(Wave(4e-7), LOSS, images(8, 1, 8, 8), probe, steps=1)
    found = tiny["equivariance/relative_error/flip"]
    assert (found.verdict, found.note) == ("violated", "in float64; ") or (
        found.verdict == "violated" and found.note.startswith("in float64")
    )
    plain = EquivarianceError(symmetries=("flip",))
    undecided = measured(Wave(4e-7), LOSS, images(8, 1, 8, 8), plain, steps=1)
    assert undecided["equivariance/relative_error/flip"].verdict == "unresolved"


def test_shares_of_layers_add_up_to_one() -> None:
    claim = Equivariance(
        Translations((2.0, 2.0), whole=False), FourierShift(), FourierShift(), name="shift"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1))
    probe = EquivarianceError(symmetries=(claim,), layers=True)
    records = measured(model, LOSS, images(4, 1, 9, 9), probe, steps=1)
    for axis in range(2):
        prefix = f"equivariance/layer_share/shift.{axis}/"
        shares = {
            n.removeprefix(prefix): r.value for n, r in records.items() if n.startswith(prefix)
        }
        assert list(shares) == ["00.0", "01.1", "02.2", "03.between-layers"]
        assert sum(shares.values()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("probe", [EquivarianceError, Asymmetry])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"symmetries": (3.14,)}, TypeError, r"names among cyclic4, .* objects, got 3\.14$"),
        ({"symmetries": (Cyclic(4),)}, TypeError,
         r"got Cyclic\(n=4\); a group needs its actions: Equivariance\(group"),
        ({"symmetries": "flip"}, TypeError, r"must be a tuple of names .* written \(claim,\)"),
        ({"symmetries": TURN(quarter_turn)}, TypeError, r"must be a tuple .* \(claim,\)"),
        ({"symmetries": None}, TypeError, "must be a tuple of names .* got None"),
        ({"symmetries": ()}, ValueError, "expected symmetries among cyclic4"),
        ({"symmetries": ("flap",)}, ValueError, r"expected symmetries among .* got \['flap'\]"),
        ({"symmetries": ("flip", "flip")}, ValueError, "different names, got 'flip' twice"),
        ({"samples": 1}, ValueError, r"samples must be >= 2, got 1; use every\(0\)"),
        ({"samples": 2.5}, TypeError, "samples must be an integer >= 2, got 2.5"),
        ({"samples": "8"}, TypeError, "samples must be an integer >= 2, got '8'"),
        ({"output": "sane"}, ValueError, "output must be one of .* got 'sane'"),
    ],
)  # fmt: skip
def test_options_of_the_wrong_kind_are_refused_at_construction(probe, options, error, message):
    with pytest.raises(error, match=message):
        probe(**options)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"peak must be > 0, .* got '2'"):
        EquivarianceError(peak="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="peak must be > 0"):
        EquivarianceError(peak=0.0)
    with pytest.raises(TypeError, match="group must be a Group"):
        Equivariance("cyclic4", flip, flip)
    assert Equivariance(Flip(), flip, flip).name == "flip"
