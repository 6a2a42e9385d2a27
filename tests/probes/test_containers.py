"""A claim sees a batch in training as it sees it in an audit, whatever holds the tensors."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import O3, Each, Equivariance, actions
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.each import Chain


@dataclass
class Cloud:
    x: Tensor
    charge: Tensor
    label: Any = None


class Points(NamedTuple):
    x: Tensor
    charge: Tensor


def in_dict(x: Tensor, charge: Tensor) -> dict[str, Tensor]:
    return {"x": x, "charge": charge}


def in_mapping(x: Tensor, charge: Tensor) -> OrderedDict[str, Tensor]:
    return OrderedDict(x=x, charge=charge)


HOLDERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": Cloud, "named tuple": Points, "dict": in_dict, "mapping": in_mapping,
}  # fmt: skip


class Energies(nn.Module):
    """Invariant by its lengths; by coordinates where `broken`. Answers in the batch's container."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.read, self.broken = nn.Linear(5, 1), broken

    def forward(self, batch: Any) -> Any:
        get = batch.__getitem__ if hasattr(batch, "keys") else lambda name: getattr(batch, name)
        x = get("x")[..., 0] if self.broken else get("x").square().sum(-1)
        energy = self.read(x * get("charge"))
        return type(batch)(x=get("x"), charge=energy)


def energy(output: Any) -> Tensor:
    found: Tensor = output["charge"] if hasattr(output, "keys") else output.charge
    return found


PARTS = {"x": vectors, "charge": actions.trivial}


def claim(parts: Any = None) -> Equivariance:
    return Equivariance(O3(), Each(parts or PARTS), Each(parts or PARTS), name="turned")


def trained(model: nn.Module, batch: Any, probe: eq.Probe) -> dict[str, Record]:
    sink, optimizer = MemorySink(), torch.optim.SGD(model.parameters(), lr=1e-3)
    with eq.attach(model, optimizer, probes=[probe], sinks=[sink], budget=None) as monitor:
        loss = monitor.loss(lambda m, b: energy(m(b)).square().mean())
        loss(model, batch).backward()
        optimizer.step()
    return {r.name: r for r in sink.records}


def cloud(kind: str) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 3, generator=generator)
    return HOLDERS[kind](x, torch.ones(8, 5))


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize("broken", [False, True])
def test_training_and_audit_give_the_same_verdict(kind: str, broken: bool) -> None:
    torch.manual_seed(0)
    model, batch = Energies(broken), cloud(kind)
    scores = audit(model, batch, claims=[claim()]).scores
    (score,) = [s for s in scores if s.symmetry.name == "turned"]
    assert score.result is not None
    probe = EquivarianceError(symmetries=(claim(),), locate=True, layers=True)
    records = trained(model, batch, probe)
    row = records["equivariance/relative_error/turned"]
    assert row.status == "ok", row.note
    assert row.verdict == score.result.verdict == ("violated" if broken else "holds")
    assert ("equivariance/layer_error/turned/00.read" in records) == broken
    assert records["equivariance/percent_of_loss/turned"].status == "ok"


@pytest.mark.parametrize("kind", HOLDERS)
def test_the_price_of_asymmetry_is_split_in_every_container(kind: str) -> None:
    torch.manual_seed(0)
    probe = Asymmetry(symmetries=(claim(),))
    share = trained(Energies(broken=True), cloud(kind), probe)["asymmetry/share/turned"]
    torch.manual_seed(0)
    known = trained(Energies(broken=True), cloud("dict"), probe)["asymmetry/share/turned"]
    assert share.value == pytest.approx(known.value, rel=1e-5)


def test_actions_may_come_in_a_named_tuple_and_chained() -> None:
    torch.manual_seed(0)
    parts = Points(vectors, actions.trivial)  # type: ignore[arg-type]
    turned = Equivariance(O3(), Chain(Each(parts)), Each(PARTS), name="chained")
    for kind in HOLDERS:
        records = trained(Energies(), cloud(kind), EquivarianceError(symmetries=(turned,)))
        assert records["equivariance/relative_error/chained"].verdict == "holds"


def test_a_field_without_an_action_is_named() -> None:
    forgotten = Equivariance(O3(), Each({"x": vectors}), actions.trivial, name="forgotten")
    records = trained(Energies(), cloud("dataclass"), EquivarianceError(symmetries=(forgotten,)))
    row = records["equivariance/relative_error/forgotten"]
    assert row.status == "not_applicable"
    assert "differ in ['charge']" in row.note
