"""Exchanges of identical atoms: a Young subgroup, its action, and batches that it does not fit."""

from math import factorial, prod

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.symmetry import Each, Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.alike import Alike, Kept
from eqtoolbox.symmetry.actions.permuting import Permute
from tests.probes.test_equivariance_probe import measured
from tests.symmetry.test_group import broken_law

WATER = torch.tensor([8, 1, 1])


def places(count: int = 8, atoms: int = 3) -> Tensor:
    return torch.randn(count, atoms, 3, generator=torch.Generator().manual_seed(0)).double()


def claim(group: Alike) -> Equivariance:
    inputs = Each((Permute(-2), Kept(Permute(-1))))
    return Equivariance(group, inputs, Each({"energy": trivial, "forces": Permute(-2)}))


class Bonds(nn.Module):
    """Energies of all pairs by their species, plus a term that looks at one place."""

    def __init__(self, spoilt: float = 0.0) -> None:
        super().__init__()
        self.spoilt = nn.Parameter(torch.tensor(spoilt, dtype=torch.float64))

    def forward(self, x: Tensor, species: Tensor) -> dict[str, Tensor]:
        apart = x[:, :, None] - x[:, None]
        weight = (species[:, :, None] * species[:, None])[..., None] * torch.exp(-(apart**2))
        forces = (weight * apart).sum(2)
        energy = weight.sum((1, 2, 3)) + self.spoilt * x[:, 1, 0]
        return {"energy": energy, "forces": forces}


@pytest.mark.parametrize("labels", [(8, 1, 1), (6, 1, 1, 1, 1), ("a", "b", "a", "b"), (1, 2)])
def test_alike_is_a_group_of_the_permutations_that_keep_labels(labels) -> None:
    group = Alike(labels)
    assert broken_law(group) == ""
    kinds = [labels.count(k) for k in set(labels)]
    assert group.order == prod(factorial(k) for k in kinds)
    elements = list(group.elements())
    assert len(set(elements)) == group.order
    assert all(labels[g[i]] == labels[i] for g in elements for i in range(len(labels)))
    drawn = group.sample(400, torch.Generator().manual_seed(0))
    assert set(drawn) == set(elements)


def test_a_function_of_identical_atoms_holds_and_one_that_numbers_them_is_violated() -> None:
    species = WATER.expand(8, 3)
    water = claim(Alike.of(species))
    result = equivariance_error(lambda b: Bonds()(*b), (places(), species), water)
    assert (result.verdict, result.samples) == ("holds", 1)
    spoilt = equivariance_error(lambda b: Bonds(0.1)(*b), (places(), species), water)
    assert spoilt.verdict == "violated"
    assert spoilt.parts["forces"] < 1e-14 < spoilt.parts["energy"]


def test_one_hot_species_give_the_same_group_and_padding_is_a_kind() -> None:
    one_hot = torch.eye(3)[torch.tensor([[2, 0, 0, 1]])].expand(4, 4, 3)
    assert Alike.of(one_hot).order == 2
    padded = torch.tensor([[8, 1, 1, 0, 0]]).expand(4, 5)
    assert Alike.of(padded).name == "alike1-2-2"


def test_batches_of_several_formulas_are_refused_by_name() -> None:
    mixed = torch.stack([WATER, torch.tensor([1, 8, 1])])
    with pytest.raises(ValueError, match="sample 1 differs from the first; make batches of one"):
        Alike.of(mixed)
    with pytest.raises(ValueError, match=r"one-hot \(batch, n, kinds\), got shape \(3,\)"):
        Alike.of(WATER)
    with pytest.raises(ValueError, match="at least two things"):
        Alike((8,))
    with pytest.raises(ValueError, match="draw some with sample"):
        Alike((1,) * 9).elements()


def test_a_probe_that_meets_another_formula_says_so_and_stops_nothing() -> None:
    probe = EquivarianceError(symmetries=(claim(Alike((8, 1, 1))),))
    loss = lambda model, batch: model(*batch)["energy"].square().mean()
    good = measured(Bonds(), loss, (places(), WATER.expand(8, 3)), probe, steps=1)
    name = "equivariance/relative_error/alike1-2"
    assert good[name].verdict == "holds"
    other = torch.tensor([1, 1, 8]).expand(8, 3)
    with pytest.warns(RuntimeWarning, match="claim alike1-2 is not measured by equivariance"):
        bad = measured(Bonds(), loss, (places(), other), probe, steps=1)
    assert bad[name].status == "not_applicable"
    assert "what is exchanged there is not alike" in bad[name].note
