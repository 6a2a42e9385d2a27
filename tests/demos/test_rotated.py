"""Rotated digits: augmentation lowers the error of the turns, only what is built in removes it."""

import pytest

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.rotated import DEMO, TURNS, load
from eqtoolbox.symmetry import equivariance_error

pytest.importorskip("sklearn")


def test_augmentation_lowers_the_error_and_enforcing_removes_it() -> None:
    data = load()
    ends = {entry: train(DEMO, entry, data, steps=61, schedule=60) for entry in DEMO.entries}
    errors = {entry: end.errors["cyclic4"] for entry, end in ends.items()}
    verdicts = {entry: error.verdict for entry, error in errors.items()}
    assert verdicts.pop("plain") == verdicts.pop("augmented") == "violated"
    assert verdicts == dict.fromkeys(("averaged", "canonicalised", "tied"), "holds")
    assert errors["plain"].value > 1.0 > errors["augmented"].value > 0.1
    assert "first broken at conv1" in errors["plain"].note
    assert all(ends["plain"].score + 0.05 < ends[entry].score for entry in verdicts)


def test_a_plain_network_is_as_far_from_the_turns_before_training() -> None:
    images = load().test[0]
    assert equivariance_error(DEMO.entries["plain"].network(), images, TURNS).verdict == "violated"
    averaged = DEMO.entries["averaged"].network().eval()
    assert equivariance_error(averaged, images, TURNS).verdict == "holds"
