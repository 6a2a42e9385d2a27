"""The volume: the scanner knows millimetres and not voxels; only its 16 poses are symmetries."""

import pytest
import torch

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.volume import CUBES, DEMO, POSES, SIZE, SPACING, dice, load, phantoms, scan
from eqtoolbox.symmetry import equivariance_error
from eqtoolbox.symmetry.actions.permuting import Box
from eqtoolbox.symmetry.testing import assert_equivariant


@pytest.fixture(scope="module")
def bodies() -> torch.Tensor:
    return phantoms(8, torch.Generator().manual_seed(3))[0].double()


def test_the_spacing_decides_which_poses_there_are(bodies) -> None:
    """Of 48 symmetries of a cube thick slices leave 16, and of those each one holds."""
    assert (POSES.group.order, CUBES.group.order) == (16, 48)
    assert assert_equivariant(scan, bodies, POSES, samples=16).enumerated
    kept = {
        g
        for g in CUBES.group.elements()
        if torch.allclose(scan(Box()(g, bodies)), Box()(g, scan(bodies)))
    }
    assert kept == set(POSES.group.elements())
    with pytest.raises(AssertionError, match="violated"):
        assert_equivariant(scan, bodies, CUBES, samples=48)


def test_a_scanner_of_cubic_voxels_would_have_all_48(bodies, monkeypatch) -> None:
    monkeypatch.setattr("eqtoolbox.demos.volume.SPACING", (1.0, 1.0, 1.0))
    assert_equivariant(scan, bodies, CUBES, samples=48)


def test_the_blur_is_equally_wide_in_millimetres_along_every_axis() -> None:
    point = torch.zeros(1, SIZE, SIZE, SIZE, dtype=torch.float64)
    point[0, 3, 3, 3] = 1.0
    seen = scan(point)[0]
    assert seen[3, 5, 3] == pytest.approx(seen[4, 3, 3].item(), rel=1e-12)  # 2 mm away, both
    assert seen[3, 3, 5] == pytest.approx(seen[3, 5, 3].item(), rel=1e-12)


def test_a_lesion_is_a_ball_of_millimetres_and_a_vessel_is_none() -> None:
    body, lesion = phantoms(64, torch.Generator().manual_seed(4))
    assert ((body == 1) | (lesion == 0)).all() and (lesion.flatten(1).sum(1) > 0).all()
    assert (body - lesion).flatten(1).sum(1).min() > 0
    places = lesion.nonzero()[:, 2:].double() * torch.tensor(SPACING, dtype=torch.float64)
    owner = lesion.nonzero()[:, 0]
    widths = torch.stack(
        [places[owner == i].amax(0) - places[owner == i].amin(0) for i in range(64)]
    )
    assert widths.max() <= 5.2  # mm, two radii along each axis


def test_dice_is_one_for_the_mask_itself_and_zero_for_what_misses_it() -> None:
    mask = (torch.rand(4, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert dice(mask - 0.5, mask) == (1.0, 0.0)
    assert dice(0.5 - mask, mask)[0] == 0.0


def test_only_the_averaged_network_keeps_the_poses() -> None:
    data = load()
    ends = {e: train(DEMO, e, data, steps=13, schedule=12) for e in ("plain", "averaged")}
    verdicts = {entry: end.errors["poses"].verdict for entry, end in ends.items()}
    assert verdicts == {"plain": "violated", "averaged": "holds"}
    averaged, scans = ends["averaged"].network.eval(), data.test[0][:4]
    assert equivariance_error(averaged, scans, CUBES).verdict == "violated"
