"""Graphs batched as flat nodes and edges: measured in training, in tests and by the audit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.record.record import Record
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.report import Run
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import E3, Each, Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import positions, vectors
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.testing import assert_equivariant

SIZES = (4, 6, 5)  # atoms of each molecule


class Graph:
    """What `Data` and `Batch` of PyTorch Geometric are to us: keys, items and a store."""

    def __init__(self, **stores: Any) -> None:
        self.stores = [dict(stores)]

    def keys(self) -> list[str]:
        return list(self.stores[0])

    def to_dict(self) -> dict[str, Any]:
        return dict(self.stores[0])

    def __getitem__(self, key: str) -> Any:
        return self.stores[0][key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.stores[0][key] = value

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["stores"][0][key]
        except KeyError as error:
            raise AttributeError(key) from error

    def __copy__(self) -> "Graph":
        return Graph(**self.stores[0])


def molecules(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    batch = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    n = len(batch)
    near = (batch[:, None] == batch) & ~torch.eye(n, dtype=torch.bool)
    return {
        "pos": torch.randn(n, 3, generator=rng),
        "z": torch.randint(0, 5, (n,), generator=rng),
        "edge_index": near.nonzero().T.contiguous(),
        "batch": batch,
    }


class Network(nn.Module):
    """Energies of molecules and forces on atoms; `leak` feeds positions in beside distances."""

    def __init__(self, leak: float = 0.0, cut: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out, self.leak, self.cut = nn.Embedding(5, 8), nn.Linear(8, 1), leak, cut
        self.message = nn.Sequential(nn.Linear(9, 8), nn.SiLU(), nn.Linear(8, 8))

    def forward(self, z: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor) -> dict[str, Any]:
        with torch.enable_grad():
            at = pos.detach().requires_grad_() if self.cut or not pos.requires_grad else pos
            energy = self.energy(z, at, edge_index, batch)
            (slope,) = torch.autograd.grad(energy.sum(), at, create_graph=True)
        return {"energy": energy, "forces": -slope}

    def energy(self, z: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        i, j = edge_index
        apart = (pos[i] - pos[j]).square().sum(1, keepdim=True)
        x = self.embed(z) + self.leak * pos.sum(1, keepdim=True)
        x = x + torch.zeros_like(x).index_add(0, i, self.message(torch.cat([x[j], apart], 1)))
        return torch.zeros(len(SIZES), dtype=x.dtype).index_add(0, batch, self.out(x)[:, 0])


class OfDict(Network):
    def forward(self, given: Any) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(given["z"], given["pos"], given["edge_index"], given["batch"])


class OfGraph(Network):
    def forward(self, given: Any) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(given.z, given.pos, given.edge_index, given.batch)


STILL = {"z": trivial, "edge_index": trivial, "batch": trivial}
AFTER = Each({"energy": trivial, "forces": vectors})
CLAIM = Equivariance(E3(), Each({"pos": positions} | STILL), AFTER, name="E3")
ARGUMENTS = Equivariance(E3(), Each((trivial, positions, trivial, trivial)), AFTER, name="E3")
ORDER = ("z", "pos", "edge_index", "batch")
FORMS: dict[str, Any] = {
    "dict": (OfDict, lambda b: (b,), CLAIM),
    "graph": (OfGraph, lambda b: (Graph(**b),), CLAIM),
    "arguments": (Network, lambda b: tuple(b[k] for k in ORDER), ARGUMENTS),
}


def trained(form: str, leak: float, claim: Equivariance | None = None) -> dict[str, Record]:
    kind, given, own = FORMS[form]
    model, sink = kind(leak, cut=True), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    claims = (claim or own,)
    probes = [EquivarianceError(symmetries=claims), Asymmetry(symmetries=claims), Curvature(k=1)]
    with eq.attach(
        model, optimizer, probes=probes, schedule=1, budget=None, sinks=[sink], on_error="raise"
    ) as monitor:
        loss_fn = monitor.loss(lambda m, x, y: sum((a - y).square().mean() for a in m(*x).values()))
        for seed in range(2):
            optimizer.zero_grad()
            loss_fn(model, given(molecules(seed)), torch.tensor(0.5)).backward()
            optimizer.step()
    return {r.name: r for r in sink.records}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_flat_graphs_are_measured_in_training_however_they_are_handed(
    form: str, leak: float
) -> None:
    records = trained(form, leak)
    found = records["equivariance/relative_error/E3"]
    assert found.status == "ok"
    assert found.verdict == ("violated" if leak else "holds")
    assert "equivariance/unmeasured/E3" not in records
    assert records["equivariance/percent_of_loss/E3"].status == "ok"
    assert records["curvature/sharpness"].status == "ok"


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_a_graph_that_the_model_cuts_off_has_its_lie_derivatives_all_the_same(leak: float) -> None:
    rows = [r for n, r in trained("dict", leak).items() if "lie_derivative" in n]
    assert len(rows) == 6 and {r.status for r in rows} == {"ok"}
    assert {r.verdict for r in rows} == {"violated" if leak else "holds"}


@pytest.mark.parametrize("form", FORMS)
def test_assertions_take_flat_graphs(form: str) -> None:
    kind, given, claim = FORMS[form]
    inputs = given(molecules())
    inputs = inputs if form == "arguments" else inputs[0]
    assert assert_equivariant(kind(), inputs, claim).verdict == "holds"
    with pytest.raises(AssertionError, match="E3 violated"):
        assert_equivariant(kind(0.1), inputs, claim)


@pytest.mark.parametrize("form", ["dict", "graph"])
def test_the_audit_takes_flat_graphs_and_finds_their_symmetries(form: str) -> None:
    kind, given, claim = FORMS[form]
    found = audit(kind(), given(molecules())[0], claims=[claim])
    verdicts = {s.symmetry.name: s.result.verdict for s in found.scores if s.result}
    assert verdicts["E3"] == verdicts["e3.pos.equivariant"] == "holds"
    assert verdicts[f"symmetric{sum(SIZES)}.equivariant"] == "holds"
    leaking = audit(kind(0.1), given(molecules())[0], claims=[claim])
    assert {s.symmetry.name: s.result.verdict for s in leaking.scores if s.result}["E3"] != "holds"


def test_a_structure_of_ase_is_one_sample() -> None:
    ase = pytest.importorskip("ase")
    rng = torch.Generator().manual_seed(0)
    atoms = ase.Atoms("CO2H", positions=torch.randn(4, 3, generator=rng).numpy())

    def energy(given: Any) -> float:
        apart = given.get_all_distances()
        return float((given.get_atomic_numbers()[:, None] * apart).sum())

    still = {"numbers": trivial, "cell": trivial, "pbc": trivial}
    claim = Equivariance(E3(), Each({"positions": positions} | still), trivial, name="E3")
    assert assert_equivariant(energy, atoms, claim).verdict == "holds"
    with pytest.raises(AssertionError, match="E3 violated"):
        assert_equivariant(lambda a: float(a.get_positions()[0].sum()), atoms, claim)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_claim_that_cannot_be_measured_is_a_warning_at_once_and_a_finding(tmp_path: Any) -> None:
    forgotten = Equivariance(E3(), Each({"pos": positions}), AFTER, name="E3")
    model, batch = OfDict(), molecules()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe, home = EquivarianceError(symmetries=(forgotten, "flip")), tmp_path / "run"
    with eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, run_dir=home
    ) as monitor:
        loss_fn = monitor.loss(lambda m, x: m(x)["energy"].square().mean())
        for step in range(3):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            if step:
                optimizer.step()
            else:
                with pytest.warns(RuntimeWarning, match=r"claim E3 is not measured.*batch"):
                    optimizer.step()
    (finding,) = [f for f in Run(home).findings() if "E3" in f.text]
    assert finding.level == "warning"
    assert "was never measured" in finding.text and "give every leaf an action" in finding.text
    assert not [f for f in Run(home).findings() if "flips" in f.text], "a name is no claim"


def test_rows_are_told_by_name_by_lengths_or_by_the_claim() -> None:
    batch = molecules()
    assert in_parts(batch) and in_parts(tuple(batch.values()), "auto", tuple(batch))
    assert in_parts({k: batch[k] for k in ("pos", "edge_index")}), "a single graph"
    assert in_parts({"x": batch["pos"], "of": batch["batch"]}, "of")
    assert not in_parts({"x": batch["pos"], "of": batch["batch"]}), "they may be labels"
    assert not in_parts({"x": torch.randn(4, 5, 3), "edges": torch.zeros(4, 2, 7).long()})
    assert not in_parts(batch, "samples") and in_parts(batch["pos"], "parts")
    with pytest.raises(ValueError, match=r"rows='graph' must name the leaf .* got leaves pos, z"):
        in_parts(batch, "graph")
    with pytest.raises(ValueError, match=r"rows=.parts. or the name of the leaf"):
        assert_equivariant(
            OfDict(), batch, Equivariance(E3(), CLAIM.input_action, AFTER, rows="samples")
        )
