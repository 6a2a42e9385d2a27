"""A few random elements speak for a large general linear group: each exactly, all on average."""

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights.charges.change import Change, Rates
from eqtoolbox.weights.charges.charges import Charges
from eqtoolbox.weights.families.general_linear import GeneralLinear
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.sketch import PROJECTIONS, Sketch
from tests.conftest import blobs

D, HEADS, REST = 20, 24, 30
Params = dict[str, Tensor]


def heads(scattered: bool = False) -> GeneralLinear:
    """Queries along rows, with a bias, against keys along columns."""
    order = torch.arange(HEADS * D).reshape(HEADS, 1, D)
    rows = order.flip(2) if scattered else order
    legs = (
        MatrixLeg("q", 0, rows, 1), MatrixLeg("b", 0, rows, 1), MatrixLeg("k", 1, order, -1),
    )  # fmt: skip
    return GeneralLinear(name="heads", dimension=HEADS * D * D, legs=legs)


def point(seed: int) -> Params:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"q": (HEADS * D, REST), "b": (HEADS * D,), "k": (REST, HEADS * D)}
    return {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}


def both(scattered: bool = False) -> tuple[Charges, Charges]:
    return tuple(Charges([heads(scattered)], point(0), sketch=s) for s in (True, False))


def stepped(charges: Charges, seed: int = 1) -> tuple[Change, Params, Params]:
    before, gradient = point(0), point(seed)
    after = {n: p + 0.1 * point(seed + 1)[n] for n, p in before.items()}
    rates = Rates(lr=dict.fromkeys(before, 0.1), decay={"q": 0.1, "b": 0.0, "k": 0.3})
    values = charges.values(charges.read(before))
    return charges.step(values, before, after, gradient, rates), before, after


@pytest.mark.parametrize("scattered", [False, True])
def test_a_sketched_charge_is_that_of_its_own_random_element(scattered: bool) -> None:
    charges, _ = both(scattered)
    (sketch,) = charges.kinds
    assert isinstance(sketch, Sketch)
    params, found = point(0), []
    q, b, k = params["q"], params["b"], params["k"]
    for head in range(HEADS):
        rows = torch.arange(head * D, (head + 1) * D)
        own = rows.flip(0) if scattered else rows
        gram = q[own] @ q[own].T + torch.outer(b[own], b[own]) - k[:, rows].T @ k[:, rows]
        vectors = sketch.vectors[head].double()
        forms = 0.5 * vectors @ gram @ vectors.T
        i, j = torch.triu_indices(PROJECTIONS, PROJECTIONS, 1)
        found.append(forms[i, j] / len(i) ** 0.5)
    values = charges.values(charges.read(params))
    assert torch.allclose(values, torch.cat(found), rtol=1e-11, atol=1e-11)


def test_the_budget_of_sketched_charges_is_exact() -> None:
    charges, _ = both()
    change, before, after = stepped(charges)
    ends = [charges.values(charges.read(p)) for p in (before, after)]
    assert torch.allclose(change.drift, ends[1] - ends[0], atol=1e-11)
    assert torch.allclose(sum(change.causes.values()), change.drift, atol=1e-11)
    shrunk = {n: p * (1 - s) for (n, p), s in zip(before.items(), (0.01, 0.0, 0.03), strict=True)}
    rest = charges.values(charges.read(shrunk)) - ends[0]
    small = {n: p - s for (n, p), s in zip(before.items(), shrunk.values(), strict=True)}
    second = charges.values(charges.read(small))
    assert torch.allclose(change.decay, rest - second, atol=1e-11)


@pytest.mark.parametrize("quantity", ["drift", "symmetry", "decay", "finite_step", "slopes"])
def test_norms_of_a_sketch_are_those_of_all_charges_within_their_error(quantity: str) -> None:
    """24 independent blocks: |z| < 4 at each of eight steps."""
    sketched, exact = both()
    scores = []
    for seed in range(2, 18, 2):
        few, every = (getattr(stepped(c, seed)[0], quantity) for c in (sketched, exact))
        generators = quantity == "slopes"
        error = sketched.error("general_linear", few.numpy(), generators=generators)
        assert error is not None
        assert 0 < error < 0.2 * float(few.norm())
        scores.append(float(few.norm() - every.norm()) / error)
    assert max(map(abs, scores)) < 4
    assert exact.error("general_linear", every.numpy()) is None


def test_scales_and_lengths_of_a_sketch_have_the_norms_of_all() -> None:
    norms = []
    for charges in both():
        reading = charges.read(point(0))
        norms.append([charges.scales(reading).norm(), charges.lengths(reading).norm()])
    assert torch.allclose(*torch.tensor(norms, dtype=torch.float64), rtol=1e-12)


def test_a_slope_in_one_dimension_of_one_block_alone_is_not_missed() -> None:
    """|s_a^T S s_b| = 1 for every pair where S has one entry: the sketch sees its whole size."""
    charges, exact = both()
    before = point(0)
    gradient = {n: torch.zeros_like(p) for n, p in before.items()}
    gradient["b"][3] = 1.0
    one, every = (c.slopes(before, gradient) for c in (charges, exact))
    assert 0.3 < float(one.norm() / every.norm()) < 3
    assert float(one.norm()) > 0


def test_training_is_estimated_at_every_step_and_exact_on_kept_ones() -> None:
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 3)), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01, momentum=0.9)
    probe = Conservation(growth=0.9)
    with eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for _ in range(40):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    rows = [r for r in sink.records if r.name == "conservation/drift/general_linear"]
    kept = {r.step for r in sink.records if r.name == "conservation/closure/general_linear"}
    assert len(rows) == 40
    assert len(kept) < 12
    assert all((r.stderr is None) == (r.step in kept) for r in rows)
    laws = [r for r in sink.records if r.name == "conservation/first_order/general_linear"]
    assert all(r.verdict == "holds" and r.stderr is not None for r in laws)
    closures = [r for r in sink.records if r.name == "conservation/closure/general_linear"]
    assert all(r.verdict == "holds" for r in closures)
    for row in rows[2:]:
        if row.step - 1 in kept and row.step not in kept:  # drift moves little in one step
            before = rows[row.step - 1]
            assert abs(row.value - before.value) < 4 * row.stderr + 0.2 * before.value
    arrays = [v for s, n, v in sink.arrays if n == "conservation/charge/general_linear"]
    assert arrays[0].shape == (24 * 25 // 2,)
