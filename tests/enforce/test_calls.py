"""What is enforced is called, kept, refused and checked as the model that it holds would be."""

import copy
import dataclasses
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.symmetry import Each, Equivariance
from eqtoolbox.symmetry.actions.action import flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.linear import Powers, vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.resampling import Shift
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.groups import (
    SE3,
    SO3,
    Cyclic,
    CyclicTranslation,
    Flip,
    Lorentz,
    Orthogonal,
    Product,
    Scalings,
    Strengths,
    Symmetric,
    Translations,
)
from eqtoolbox.symmetry.testing import assert_equivariant
from tests.enforce.claims import CASES, Mlp

TURNS = Equivariance(Cyclic(4), quarter_turn, trivial)
BOTH = [eq.enforce.averaged, eq.enforce.canonicalised]
both = pytest.mark.parametrize("make", BOTH, ids=["averaged", "canonicalised"])


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(2))


class Masked(nn.Module):
    """Several arguments, flags among them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp((1, 4, 4), (3,))

    def forward(self, image: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
        y: Tensor = self.inner(image if mask is None else image * mask)
        return 2.0 * y if twice else y


@both
@pytest.mark.parametrize(
    "parts", [(quarter_turn,) * 2, dict.fromkeys(("image", "mask"), quarter_turn)]
)
def test_arguments_are_given_by_place_or_by_name(make: Any, parts: Any) -> None:
    claim = Equivariance(Cyclic(4), Each(parts), trivial)
    x, mask = images(), images() > 0
    made = make(Masked(), claim)
    expected = made(x, mask)
    assert make(made.model, claim).report is None
    for found in (made(x, mask=mask), made(mask=mask, image=x), 0.5 * made(x, mask, twice=True)):
        assert torch.equal(found, expected)
    turned = made(quarter_turn(1, x), mask=quarter_turn(1, mask))
    assert torch.allclose(turned, expected, atol=1e-6)
    assert not torch.allclose(made(quarter_turn(1, x), mask=mask), expected, atol=1e-3)


def test_probes_see_what_is_enforced_as_they_see_the_model() -> None:
    batch = {"image": images(), "mask": images() + 3.0}
    claim = Equivariance(Cyclic(4), Each(dict.fromkeys(batch, quarter_turn)), trivial)
    made = eq.enforce.averaged(Masked(), claim, batch).eval()
    verdicts = {s.symmetry.name: s.result.verdict for s in audit(made, batch).scores if s.result}
    assert verdicts["cyclic4.invariant"] == "holds" and verdicts["flip.invariant"] == "violated"
    spread = Equivariance(Cyclic(4), Each((quarter_turn, quarter_turn)), trivial)
    whole = eq.enforce.averaged(Masked(), spread, tuple(batch.values()))
    assert assert_equivariant(whole, tuple(batch.values()), spread).verdict == "holds"


@dataclasses.dataclass
class Scene:
    image: Tensor
    name: str = "a"


class OfScenes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp((1, 4, 4), (1, 4, 4))

    def forward(self, scene: Scene) -> Scene:
        return Scene(self.inner(scene.image), scene.name)


@both
def test_dataclasses_come_and_go_as_they_are(make: Any) -> None:
    act = Each({"image": quarter_turn, "name": trivial})
    made = make(OfScenes(), Equivariance(Cyclic(4), act, act), sample=Scene(images()))
    y, turned = made(Scene(images(), "b")), made(Scene(quarter_turn(1, images()), "b"))
    assert type(y) is Scene and y.name == "b"
    assert torch.allclose(turned.image, quarter_turn(1, y.image), atol=1e-6)


@both
def test_outputs_of_transformers_stay_theirs(make: Any) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Classifier(Mlp):
        def forward(self, x: Tensor) -> Any:
            return outputs.SequenceClassifierOutput(logits=super().forward(x))

    made = make(Classifier((1, 4, 4), (3,)), TURNS, sample=images())
    y = made(images())
    assert type(y) is outputs.SequenceClassifierOutput and y.loss is None
    assert torch.allclose(made(quarter_turn(1, images())).logits, y.logits, atol=1e-6)
    assert y["logits"] is y.logits


class Molecules(nn.Module):
    """Energies of molecules, forces of atoms."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, pos: Tensor, batch: Tensor) -> dict[str, Tensor]:
        forces = self.inner(pos)
        energy = forces.new_zeros(int(batch.max()) + 1).index_add(0, batch, forces.sum(1))
        return {"energy": energy, "forces": forces}


@both
@pytest.mark.parametrize("rows", ["auto", "parts", "batch"])
def test_atoms_of_several_molecules_are_one_sample(make: Any, rows: str) -> None:
    turn = Powers(torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    given, out = Each({"pos": turn, "batch": trivial}), Each({"energy": trivial, "forces": turn})
    claim = Equivariance(Cyclic(4), given, out, rows=rows)
    pos, batch = torch.randn(7, 3), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    made = make(Molecules(), claim, sample={"pos": pos, "batch": batch})
    y, turned = made(pos, batch), made(turn(1, pos), batch)
    assert y["energy"].shape == (3,) and y["forces"].shape == (7, 3)
    assert torch.allclose(turned["energy"], y["energy"], atol=1e-5)
    assert torch.allclose(turned["forces"], turn(1, y["forces"]), atol=1e-5)


@both
def test_a_function_is_enforced_as_a_module_is(make: Any) -> None:
    made = make(lambda x: x[..., 0].cumsum(-1).flatten(1), TURNS, sample=images())
    assert made.report.result.verdict == "holds" and not dict(made.named_parameters()).get("model")
    assert torch.allclose(made(images()), made(quarter_turn(3, images())), atol=1e-6)


@both
def test_it_is_kept_moved_and_copied_like_the_model(make: Any) -> None:
    torch.manual_seed(0)
    model = Mlp((1, 4, 4), (3,))
    made = make(model, TURNS, sample=images())
    keys = [f"model.{k}" for k in model.state_dict()]
    assert [k for k in made.state_dict() if k.startswith("model.")] == keys
    assert made.model is model and next(made.parameters()) is next(model.parameters())
    y = made(images())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(images()), y) and other.report is not None
    fresh = make(Mlp((1, 4, 4), (3,)), TURNS)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(images()), y)
    assert made.double()(images().double()).dtype is torch.float64


@both
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_it_is_compiled_traced_and_mapped(make: Any) -> None:
    made = make(Mlp((1, 4, 4), (3,)), TURNS, sample=images()).eval()
    y = made(images())
    assert torch.equal(torch.compile(made, backend="eager", fullgraph=True)(images()), y)
    if make is eq.enforce.averaged:
        traced = torch.jit.trace(made, images(), check_trace=False)
        assert torch.allclose(traced(images(5)), made(images(5)), atol=1e-6)
    parameters = {k: p.detach() for k, p in made.model.named_parameters()}
    loss = lambda p, x: torch.func.functional_call(
        made, {f"model.{k}": v for k, v in p.items()}, (x[None],)
    ).sum()
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images())
    made(images()).sum().backward()
    for name, p in made.model.named_parameters():
        assert torch.allclose(each[name].sum(0), p.grad, atol=1e-5)


class Counting(nn.Module):
    """Draws, counts and keeps statistics: all of which a check must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.inner(x)
        return y + 0.0 * torch.rand(()) if self.training else y


def state(model: Counting) -> list[Any]:
    streams = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    tensors = [t.tolist() for t in model.state_dict().values()]
    return [
        streams,
        tensors,
        model.calls,
        [m.training for m in model.modules()],
        list(model.__dict__),
    ]


@both
@pytest.mark.parametrize("claim", [TURNS, Equivariance(Cyclic(3), quarter_turn, trivial)])
def test_a_check_leaves_no_trace_whether_it_passes_or_not(make: Any, claim: Equivariance) -> None:
    model = Counting()
    model.inner[1].eval()
    before = state(model)
    if claim is TURNS:
        assert make(model, claim, sample=images()).report is not None
    else:
        with pytest.raises(ValueError, match="S_g"):
            make(model, claim, sample=images())
    assert state(model) == before


@both
def test_without_a_sample_the_first_call_is_checked(make: Any) -> None:
    made = make(Counting(), TURNS)
    assert made.report is None and "not checked yet" in repr(made)
    made(images())
    assert made.report.result.verdict == "holds" and made.model.calls == 1
    wrong, model = make(Counting(), Equivariance(Cyclic(3), quarter_turn, trivial)), made.model
    for _ in range(2):
        with pytest.raises(ValueError, match="input_action of cyclic3"):
            wrong(images())
    assert wrong.report is None and wrong.model.calls == 0 and model.calls == 1


def test_the_report_says_what_a_call_costs_and_what_was_found() -> None:
    torch.manual_seed(0)
    made = eq.enforce.averaged(Mlp((1, 4, 4), (3,)), TURNS, images())
    lines = str(made.report).splitlines()
    assert lines[0] == "averaged over cyclic4: 4 forwards a call"
    assert lines[2].endswith("violated") and lines[3].endswith("holds")
    assert "cyclic4, 4 forwards a call, relative error" in repr(made)
    posed = eq.enforce.canonicalised(Mlp((1, 4, 4), (3,)), TURNS, None, images())
    assert (
        str(posed.report).splitlines()[0]
        == "canonicalised over cyclic4: 1 forward and 4 scores a call"
    )
    assert str(posed.report).splitlines()[-1].startswith("smallest margin")


def _of(group: Any) -> Equivariance:
    return Equivariance(group, vectors, trivial)


REFUSED = {
    "se3": (_of(SE3()), "se3 is not compact.*Orthogonal\\(3, proper=True\\)"),
    "lorentz": (_of(Lorentz()), "lorentz is not compact"),
    "scalings": (_of(Scalings()), "scalings is not compact"),
    "translations": (_of(Translations((2, 2))), "translations2 is not compact.*CyclicTranslation"),
    "a product": (_of(Product(Cyclic(2), Translations((1,)))), "not compact"),
    "strengths": (_of(Strengths(3)), "strengths3 cannot be undone"),
    "so3": (_of(SO3()), "so3 has infinitely many elements"),
    "many": (_of(Symmetric(7)), "symmetric7 has 5040 elements, more than 1024.*sampled"),
    "shifts": (Equivariance(CyclicTranslation(33), roll, roll), "1089 elements"),
    "shifts into zeros": (
        Equivariance(Translations((1, 1)), Shift((1, 1)), trivial),
        "not compact",
    ),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_groups_without_a_mean_are_refused_by_name(make: Any, name: str) -> None:
    claim, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        make(nn.Flatten(), claim)


def test_sampled_takes_what_is_too_large_and_refuses_what_has_no_mean() -> None:
    assert eq.enforce.sampled(nn.Flatten(), _of(SO3())).cost == (16, 0)
    for name in ("se3", "strengths"):
        with pytest.raises(ValueError, match=REFUSED[name][1]):
            eq.enforce.sampled(nn.Flatten(), REFUSED[name][0])


BAD: dict[str, tuple[Any, Any, str]] = {
    "oblong images": (
        lambda x: x.sum((1, 2, 3))[:, None],
        torch.randn(4, 1, 4, 6),
        "height == width, got 4x6",
    ),
    "classes": (lambda x: x.flatten(1).argmax(1), images(), "floating point.*logits"),
    "one number": (lambda x: x.sum(), images(), "start with the batch size"),
    "a cache": (
        lambda x: {"y": x.flatten(1), "cache": object()},
        images(),
        "got object.*leave it out",
    ),
    "integers": (lambda x: x.flatten(1), torch.zeros(2, 1, 4, 4).long(), "must be floating point"),
    "an empty batch": (lambda x: x.flatten(1), torch.zeros(0, 1, 4, 4), "at least one sample"),
    "nan": (lambda x: x.flatten(1) * float("nan"), images(), "must be finite"),
}


@both
@pytest.mark.parametrize("name", BAD)
def test_bad_models_and_batches_are_refused(make: Any, name: str) -> None:
    model, x, said = BAD[name]
    with pytest.raises((TypeError, ValueError, FloatingPointError), match=said):
        make(model, TURNS, sample=x)


def test_a_model_that_sees_its_place_in_the_batch_is_refused_unless_elements_go_one_by_one() -> (
    None
):
    summed = lambda x: x.flatten(1).cumsum(0)
    with pytest.raises(ValueError, match=r"place in the batch .*chunk=1"):
        eq.enforce.averaged(summed, TURNS, images())
    assert eq.enforce.averaged(summed, TURNS, images(), chunk=1).report.result.verdict == "holds"


@both
def test_a_random_model_is_not_said_to_hold(make: Any) -> None:
    report = make(lambda x: x.flatten(1) + torch.randn(16), TURNS, sample=images()).report
    assert report.result.verdict == "unresolved" and "random" in str(report)


def test_a_score_that_does_not_tell_poses_apart_is_refused() -> None:
    for score in (lambda x: x.flatten(1).sum(1), lambda x: torch.zeros(len(x))):
        with pytest.raises(ValueError, match="8 of 8 samples"):
            eq.enforce.canonicalised(nn.Flatten(), TURNS, score, images())
    for score in (lambda x: x.sum(), lambda x: x.flatten(1), lambda x: "high"):
        with pytest.raises(ValueError, match="one number a sample"):
            eq.enforce.canonicalised(nn.Flatten(), TURNS, score, images())
    with pytest.raises(ValueError, match="NaN"):
        eq.enforce.canonicalised(
            nn.Flatten(), TURNS, lambda x: x.flatten(1).sum(1) / 0.0 * 0.0, images()
        )
    with pytest.raises(TypeError, match="score must be a function"):
        eq.enforce.canonicalised(nn.Flatten(), TURNS, images())


@both
def test_wrong_arguments_are_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="claim must be an Equivariance"):
        make(nn.Flatten(), Cyclic(4))
    with pytest.raises(TypeError, match="model must be a function"):
        make(nn.Flatten, TURNS)
    with pytest.raises(ValueError, match="lazy"):
        make(nn.LazyLinear(3), TURNS)
    with pytest.raises(TypeError, match="'mask', which holds a tensor"):
        make(Masked(), Equivariance(Cyclic(4), Each((quarter_turn,)), trivial))(images(), images())
    assert make(Masked(), TURNS)(images(), None, twice=True).shape == (8, 3)


def test_numbers_of_the_average_are_checked() -> None:
    for wrong in ({"chunk": 0}, {"degree": -1}, {"degree": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            eq.enforce.averaged(nn.Flatten(), TURNS, **wrong)
    with pytest.raises(ValueError, match="elements must be an integer >= 2"):
        eq.enforce.sampled(nn.Flatten(), TURNS, elements=1)
    with pytest.raises(ValueError, match="no exact rule is known for o4"):
        eq.enforce.averaged(nn.Flatten(), _of(Orthogonal(4)), degree=1)
    with pytest.raises(ValueError, match=r"needs .* forwards"):
        eq.enforce.averaged(nn.Flatten(), _of(SO3()), degree=12)


def test_a_large_group_goes_in_chunks_with_the_same_result() -> None:
    case = CASES["symmetric, rows"]
    claim = Equivariance(Symmetric(5), Permute(1), Permute(1))
    model, x = Mlp((5, 2), (5, 2)).double(), torch.randn(4, 5, 2, dtype=torch.float64)
    whole, parts = (eq.enforce.averaged(model, claim, chunk=c) for c in (None, 7))
    assert torch.allclose(whole(x), parts(x), rtol=0, atol=1e-15)
    assert case.claim.group.order == 6


def test_a_flip_of_an_oblong_image_is_no_turn() -> None:
    x = torch.randn(4, 1, 4, 6)
    assert eq.enforce.averaged(nn.Flatten(), Equivariance(Flip(), flip, trivial), x).report
