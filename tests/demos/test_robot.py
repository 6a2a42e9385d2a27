"""The two-arm robot: its torques obey the mirror, and a network that knows it fits better."""

import torch

from eqtoolbox.demos.robot import MIRROR, Mirrored, Plain, torques, train
from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions import trivial


def test_the_dynamics_obey_the_mirror_with_its_signs() -> None:
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert equivariance_error(torques, x, MIRROR).verdict == "holds"
    unsigned = Equivariance(MIRROR.group, MIRROR.input_action, trivial)
    assert equivariance_error(torques, x, unsigned).verdict == "violated"


def test_the_averaged_network_keeps_the_mirror_and_fits_better() -> None:
    torch.manual_seed(0)
    plain, mirrored = train(Plain(), steps=151), train(Mirrored(), steps=151)
    assert (plain.verdict, mirrored.verdict) == ("violated", "holds")
    assert mirrored.error < plain.error
    assert plain.asymmetry > 1e-2 > 1e-5 > mirrored.asymmetry
