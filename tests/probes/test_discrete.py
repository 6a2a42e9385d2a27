"""The probe of discrete symmetries on networks with planted duplicate, dead and merging units."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs, mlp

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


def run(
    model: nn.Module,
    batch: Any,
    probe: Discrete | None = None,
    *,
    loss: Any = cross_entropy,
    steps: int = 1,
    due: Any = 1,
    **options: float,
) -> list[Record]:
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.05, **options})
    sink = MemorySink()
    with eq.attach(
        model,
        optimizer,
        probes=[probe or Discrete()],
        schedule=due,
        budget=None,
        sinks=[sink],
        on_error="raise",
    ) as monitor:
        step_loss = monitor.loss(loss)
        for _ in range(steps):
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
    return sink.records


def of(records: list[Record], name: str, step: int = 0) -> Record:
    (record,) = [r for r in records if r.name == f"discrete/{name}" and r.step == step]
    return record


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(6, 10, 8, 3, activation=activation).double()


def data() -> Batch:
    x, y = blobs()
    return x.double(), y


@pytest.mark.usefixtures("claimed")
def test_laws_hold_on_a_random_element_and_fail_for_another_network() -> None:
    probe = Discrete()
    records = run(network(nn.Tanh), data(), probe)
    for family in ("permutation", "sign_flip"):
        for order in ("first", "second"):
            law = of(records, f"{order}_order/{family}")
            assert law.verdict == "holds"
            assert law.value < 1e-12
    second = [of(records, f"second_order/{f}") for f in ("permutation", "sign_flip")]
    assert [law.matvecs for law in second] == [1, 0]  # both families move at once
    records = run(network(nn.GELU), data(), probe)  # its symmetries were found for tanh
    second = [of(records, f"second_order/{f}") for f in ("permutation", "sign_flip")]
    assert [law.matvecs for law in second] == [1, 1]
    assert of(records, "first_order/permutation").verdict == "holds"
    assert of(records, "first_order/sign_flip").verdict == "violated"
    assert of(records, "second_order/sign_flip").verdict == "violated"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws_hold_to_rounding_where_moving_by_a_rounding_changes_nothing(
    dtype: torch.dtype,
) -> None:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(16, 4).to(dtype), torch.randint(0, 3, (16,))
        x[:, 0] *= 1e4  # saturated: the Hessian is that of a few samples, or of none
        found += run(mlp(4, 6, 3).to(dtype), (x, y), Discrete(pairs=0), lr=1e-8, steps=3)
    laws = [r for r in found if "_order" in r.name and r.status == "ok"]
    assert len(laws) >= 18
    assert {law.verdict for law in laws} == {"holds"}
    assert min(law.floor for law in laws if law.floor is not None) >= torch.finfo(dtype).eps


def test_unrelated_units_are_neither_duplicate_nor_dead() -> None:
    records = run(network(), data())
    assert of(records, "distance/permutation").value > 0.1
    assert of(records, "duplicates").value == 0


def test_a_planted_duplicate_is_named() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[5], model[2].bias[5] = model[2].weight[2], model[2].bias[2]
        model[4].weight[:, 5] = model[4].weight[:, 2]
    records = run(model, data(), steps=3)
    for step in range(3):
        assert of(records, "distance/permutation", step).value < 1e-12
        assert of(records, "duplicates", step).value == 1
        assert of(records, "duplicates", step).note == "2-4 units 2 and 5"
        assert of(records, "block/1", step).verdict == "holds"


def test_units_equal_in_half_of_what_they_own_are_no_duplicates() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[5], model[2].bias[5] = model[2].weight[2], model[2].bias[2]
    records = run(model, data())
    assert of(records, "duplicates").value == 0
    assert of(records, "distance/permutation").value > 0.1


def silent(model: nn.Sequential) -> set[str]:
    """Units whose activation is zero on the whole batch, from the activations themselves."""
    x, found = data()[0], set()
    for k, layer in enumerate(model):
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            off = (x == 0).all(0).nonzero().flatten().tolist()
            found |= {f"{k - 1}-{k + 1} unit {unit}" for unit in off}
    return found


def test_dead_units_are_named_with_the_reason() -> None:
    model = network()
    before = silent(model)
    assert before == {"2-4 unit 5"}, "one unit is dead by its initialisation"
    record = of(run(model, data()), "dead")
    assert record.value == 1
    assert record.note == "2-4 unit 5 (never active)"
    with torch.no_grad():
        model[0].bias[4] = -100.0  # below zero on every sample
        model[4].weight[:, 3] = 0.0  # nothing reads it
    assert silent(model) == before | {"0-2 unit 4"}
    record = of(run(model, data()), "dead")
    assert record.value == 3
    assert "0-2 unit 4 (never active)" in record.note
    assert "2-4 unit 3 (zero 4.weight[1])" in record.note


def test_a_unit_that_a_gain_of_zero_switches_off_is_dead() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    ).double()  # fmt: skip
    assert of(run(model, data()), "dead").value == 0
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0.0, 0.0
    record = of(run(model, data()), "dead")
    assert record.value == 1
    assert "unit 2 (zero 1.weight, 1.bias)" in record.note


def test_zero_biases_make_no_unit_dead() -> None:
    model = network(nn.Tanh)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.bias.zero_()
    assert of(run(model, data()), "dead").value == 0


class Two(nn.Module):
    """f = a_1 relu(w_1) + a_2 relu(w_2), near a_1 = a_2 and w_1 = w_2.

    With r = f - y, deviations a = a0 +- p / sqrt 2, w = w0 -+ q / sqrt 2 cost r p q, so that the
    Hessian on the antisymmetric directions is [[0, r], [r, 0]] and decay g gives g - |r| and
    g + |r|: the units merge when g > |r| and part when g < |r|.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.w, self.a = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.double()
        with torch.no_grad():
            self.w.weight[0], self.w.weight[1] = 0.8 + deviation, 0.8 - deviation
            self.a.weight[0, 0], self.a.weight[0, 1] = 0.5 + deviation, 0.5 - deviation

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.w(x)))


RESIDUAL = -0.3  # of 2 * 0.5 * 0.8 = 0.8 against a target of 1.1: both weights grow, r < 0


@pytest.mark.parametrize(("decay", "word"), [(0.5, "merge"), (0.1, "part"), (0.0, "part")])
def test_the_margin_says_whether_two_units_merge_or_part_and_how_fast(
    decay: float, word: str
) -> None:
    one, target = torch.ones(1, 1).double(), torch.full((1, 1), 0.8 - RESIDUAL).double()
    model = Two(1e-5)
    records = run(
        model,
        (one, target),
        Discrete(laws=False),
        loss=squared,
        lr=1e-3,
        weight_decay=decay,
        steps=20,
    )
    first = of(records, "margin/1")
    assert first.value == pytest.approx(decay - abs(RESIDUAL), abs=1e-6)
    assert of(records, "normal_curvature/1").value == pytest.approx(-abs(RESIDUAL), abs=1e-6)
    assert (first.value > 0) == (word == "merge")
    size = (2 * (0.8**2 + 0.5**2)) ** 0.5
    assert of(records, "nearest/1").value == pytest.approx(2e-5 * 2**0.5 / size, rel=1e-6)
    # p = q > 0 is the eigenvector of r < 0, so that z follows exp(-margin t) while r lasts
    rate = of(records, "shrinking/1").value
    assert rate == pytest.approx(1e-3 * first.value, rel=1e-3)
    apart = (model.w.weight[0] - model.w.weight[1]).item()
    assert (apart < 2e-5) == (word == "merge")
    kept = 1.0
    for step in range(20):
        kept *= 1 - of(records, "shrinking/1", step).value
    assert apart == pytest.approx(2e-5 * kept, rel=1e-6)


@pytest.mark.parametrize(("slope", "decay", "merge"), [(1.0, 0.2, True), (5.0, 0.05, False)])
def test_a_margin_measured_early_foretells_whether_trained_units_become_duplicates(
    slope: float, decay: float, merge: bool
) -> None:
    """Two tanh units fit a curve; what becomes of them is told 1000 steps ahead."""
    model = mlp(1, 2, 1, activation=nn.Tanh, bias=False).double()
    with torch.no_grad():
        model[0].weight[0], model[0].weight[1] = 1.0, 0.7
        model[2].weight[0, 0], model[2].weight[0, 1] = 0.6, 0.9
    x = torch.linspace(-2, 2, 16).double()[:, None]
    batch = (x, 1.5 * torch.tanh(slope * x))
    probe = Discrete(laws=False, pairs=1)
    records = run(
        model, batch, probe, loss=squared, lr=0.2, weight_decay=decay, steps=1201,
        due=eq.at([200, 1200]),
    )  # fmt: skip
    early, late = of(records, "nearest/1", 200), of(records, "distance/permutation", 1200)
    assert early.value > 1e-4, "nothing has merged yet"
    margin = of(records, "margin/1", 200)
    assert abs(margin.value) > 10 * (margin.stderr or 0.0)
    assert (margin.value > 0) == merge
    assert of(records, "shrinking/1", 200).value == pytest.approx(0.2 * margin.value, rel=0.3)
    assert (late.value < early.value) == merge
    assert of(records, "duplicates", 1200).value == int(merge)


def test_the_margin_is_the_smallest_eigenvalue_of_the_dense_projected_hessian() -> None:
    model = network(nn.Tanh)
    x, y = data()
    with torch.no_grad():
        model[2].weight[5] = model[2].weight[2] + 0.01
        model[2].bias[5] = model[2].bias[2]
        model[4].weight[:, 5] = model[4].weight[:, 2] + 0.01
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    records = run(model, (x, y), Discrete(pairs=1), weight_decay=0.01)
    assert of(records, "nearest/1").note == "2-4 units 2 and 5"
    swapped = {n: p.clone() for n, p in params.items()}
    for name in ("2.weight", "2.bias"):
        swapped[name][[2, 5]] = params[name][[5, 2]]
    swapped["4.weight"][:, [2, 5]] = params["4.weight"][:, [5, 2]]
    middle = {n: (params[n] + swapped[n]) / 2 for n in params}
    flat = torch.cat([p.flatten() for p in middle.values()])

    def loss(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in params.values()])
        named = {n: v.reshape(p.shape) for v, (n, p) in zip(parts, params.items(), strict=True)}
        return F.cross_entropy(functional_call(model, named, (x,)), y)

    hessian = torch.func.hessian(loss)(flat)
    names = {n: k * torch.ones_like(p) for k, (n, p) in enumerate(params.items())}
    basis = []
    for name, here, there in (
        *(("2.weight", (2, k), (5, k)) for k in range(10)),
        ("2.bias", (2,), (5,)),
        *(("4.weight", (k, 2), (k, 5)) for k in range(3)),
    ):
        e = {n: torch.zeros_like(p) for n, p in names.items()}
        e[name][here], e[name][there] = 0.5**0.5, -(0.5**0.5)
        basis.append(torch.cat([v.flatten() for v in e.values()]))
    E = torch.stack(basis)
    expected = float(torch.linalg.eigvalsh(E @ hessian @ E.T)[0])
    assert of(records, "normal_curvature/1").value == pytest.approx(expected, rel=1e-4)
    assert of(records, "margin/1").value == pytest.approx(expected + 0.01, rel=1e-4)
    assert of(records, "block/1").verdict == "holds"


def test_a_small_odd_unit_is_measured_against_its_own_zero() -> None:
    """Near zero a tanh unit sees [[0, B], [B^T, 0]]: it grows unless the decay exceeds |B|."""
    model = network(nn.Tanh)
    with torch.no_grad():
        for slot in (model[2].weight[3], model[2].bias[3:4], model[4].weight[:, 3]):
            slot.mul_(1e-3)
    records = run(model, data())
    assert of(records, "distance/sign_flip").note == "2-4 unit 3"
    assert of(records, "nearest/1").note == "2-4 unit 3"
    assert of(records, "margin/1").value < 0
    records = run(model, data(), weight_decay=1.0)
    assert of(records, "margin/1").value > 0
    assert of(records, "shrinking/1").value > 0


class Mixed(nn.Module):
    """Tanh on the first four units, GELU on the others: the two kinds cannot be exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(x[:, :4]), F.gelu(x[:, 4:])], dim=1)


@pytest.mark.usefixtures("claimed")
def test_the_block_structure_fails_where_the_exchange_is_no_symmetry() -> None:
    """Negative control: exchanges found for tanh, claimed where units 2 and 5 differ in kind."""
    probe = Discrete(pairs=1)
    for activation, verdict in ((nn.Tanh(), "holds"), (Mixed(), "violated")):
        model = network(nn.Tanh)
        model[3] = activation
        with torch.no_grad():
            model[2].weight[5], model[2].bias[5] = model[2].weight[2], model[2].bias[2]
            model[4].weight[:, 5] = model[4].weight[:, 2]
        records = run(model, data(), probe)
        assert of(records, "nearest/1").note == "2-4 units 2 and 5"
        assert of(records, "block/1").verdict == verdict


def test_far_pairs_get_no_hessian_part() -> None:
    records = run(network(), data(), Discrete(near=0.0))
    assert not [r for r in records if r.name.startswith("discrete/margin")]


def test_a_network_without_discrete_symmetries_is_not_applicable() -> None:
    torch.manual_seed(0)
    record = of(run(nn.Linear(6, 3).double(), data()), "distance")
    assert record.status == "not_applicable"
    assert "no discrete parameter symmetry" in record.note


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs >= 0"):
        Discrete(pairs=-1)
    with pytest.raises(ValueError, match="near from 0"):
        Discrete(near=2.0)
