"""Molecules: EMT and a network of tensor products obey rigid motions, a perceptron does not."""

import sys

import pytest
import torch

from eqtoolbox.command.cli import main
from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.demo import Data
from eqtoolbox.demos.molecules import (
    ATOMS,
    DEMO,
    MOTIONS,
    NUMBERING,
    SCALARS,
    PlainMolecules,
    energies,
    laws,
    load,
)
from eqtoolbox.symmetry import lie_derivative
from eqtoolbox.symmetry.testing import assert_equivariant


@pytest.fixture(scope="module")
def data() -> Data:
    pytest.importorskip("ase")
    return load()


def test_forces_are_minus_the_slope_of_the_energy() -> None:
    """Central differences, for a network without e3nn."""
    torch.manual_seed(0)
    network = PlainMolecules(16).double()
    x = torch.randn(2, ATOMS, 3, dtype=torch.float64)
    species = torch.eye(4, dtype=torch.float64)[torch.randint(4, (2, ATOMS))]
    species[:, -2:] = 0.0
    forces = network(x, species)["forces"]
    push = torch.randn_like(x)
    there, back = (network(x + s * 1e-5 * push, species)["energy"] for s in (1, -1))
    assert torch.allclose((back - there) / 2e-5, (forces * push).sum((1, 2)), rtol=1e-7)
    assert forces[:, -2:].abs().max() == 0
    assert forces.sum(1).abs().max() < 1e-12  # coordinates about the centroid: no net force


def test_emt_obeys_motions_and_numbering_and_its_forces_are_its_slope(data: Data) -> None:
    assert [law.result.verdict for law in laws(data)] == ["holds", "holds", "violated"]
    x, species = (t[:4].double() for t in data.test[0])
    real = species.sum(-1, keepdim=True)
    push = real * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    there, back = (energies(x + s * 1e-5 * push, species)["energy"] for s in (1, -1))
    forces = energies(x, species)["forces"]
    assert torch.allclose((back - there) / 2e-5, (forces * push).sum((1, 2)), rtol=1e-6)


@pytest.mark.slow
def test_the_equivariant_network_learns_what_the_plain_one_cannot(data: Data) -> None:
    pytest.importorskip("e3nn")
    ends = {e: train(DEMO, e, data, steps=25, schedule=24) for e in ("plain", "equivariant")}
    for name in (MOTIONS.name, NUMBERING.name):
        verdicts = [end.errors[name].verdict for end in ends.values()]
        assert verdicts == ["violated", "holds"]
    assert ends["equivariant"].score < 0.8 * ends["plain"].score
    network, inputs = ends["equivariant"].network, tuple(t[:8] for t in data.test[0])
    slopes = lie_derivative(lambda batch: network(*batch), inputs, MOTIONS)
    assert [s.verdict for s in slopes] == ["holds"] * 6
    assert_equivariant(network, inputs, MOTIONS)
    with pytest.raises(AssertionError, match="violated"):
        assert_equivariant(network, inputs, SCALARS)


@pytest.mark.parametrize("name", ["molecules", "graphs"])
def test_a_missing_library_is_named_with_its_remedy(
    name: str,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ase", None)
    monkeypatch.setitem(sys.modules, "networkx", None)
    assert main(["demo", name, "--run-dir", f"{tmp_path}/run", "--json"]) == 2
    assert 'pip install "eqtoolbox[demos]"' in capsys.readouterr().err
