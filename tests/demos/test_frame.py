"""The frame of the demos: watching changes nothing, scores carry errors, wrong laws are alarms."""

from dataclasses import replace

import pytest
import torch

from eqtoolbox.command.demo.catalogue import DEMOS, demo
from eqtoolbox.command.demo.closing import closing
from eqtoolbox.command.demo.training import train
from eqtoolbox.demos import burgers, robot, tokens
from eqtoolbox.demos.demo import Batch, Demo, batches, moved
from eqtoolbox.demos.scores import accuracy, relative_error
from eqtoolbox.enforce import averaged
from eqtoolbox.record.schedule import at
from eqtoolbox.symmetry import equivariance_error
from eqtoolbox.watch.probe import Probe, Scheduled


class Idle(Probe):
    """Measures nothing."""

    name, headline, mode = "idle", "nothing", "train"

    def measure(self, snapshot, reference, rng):
        return iter(())


@pytest.mark.parametrize("found", [robot.DEMO, tokens.DEMO], ids=lambda d: d.name)
def test_a_watched_run_ends_in_the_same_bits(found: Demo) -> None:
    data, entry = found.load(), "augmented"
    never = [Scheduled(probe=Idle(), schedule=at([]))]
    alone = train(found, entry, data, steps=6, probes=never)
    watched = train(found, entry, data, steps=6, schedule=1)
    assert [r for r in watched.records if r.name.startswith("equivariance")]
    for p, q in zip(alone.network.parameters(), watched.network.parameters(), strict=True):
        assert torch.equal(p, q)
    assert alone.score == watched.score


def test_augmentation_moves_inputs_and_targets_together() -> None:
    x = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    seen: set[bool] = set()
    for _ in range(20):
        there, wanted = moved((x, robot.torques(x)), robot.MIRROR, rng)
        assert torch.allclose(robot.torques(there), wanted)
        seen.add(torch.equal(there, x))
    assert seen == {True, False}  # the identity is drawn too


def test_batches_shuffle_whole_epochs() -> None:
    data: Batch = (torch.arange(10), torch.arange(10) * 2)
    seen = list(batches(data, 3, 6, seed=0))
    assert [len(x) for x, _ in seen] == [3] * 6
    assert len(torch.cat([x for x, _ in seen[:3]]).unique()) == 9
    assert all(torch.equal(2 * x, y) for x, y in seen)


def test_the_error_of_a_score_is_that_of_resampled_tests() -> None:
    rng = torch.Generator().manual_seed(0)
    targets = torch.randn(400, 3, generator=rng)
    outputs = targets + 0.3 * torch.randn(400, 3, generator=rng) * targets[:, :1].abs()
    value, stderr = relative_error(outputs, targets)
    again = []
    for _ in range(300):
        rows = torch.randint(400, (400,), generator=rng)
        again.append(relative_error(outputs[rows], targets[rows])[0])
    assert torch.tensor(again).std().item() == pytest.approx(stderr, rel=0.15)
    assert torch.tensor(again).mean().item() == pytest.approx(value, abs=stderr)
    share, error = accuracy(torch.eye(2)[torch.tensor([0] * 80 + [1] * 20)], torch.zeros(100))
    assert (share, error) == (0.8, pytest.approx(0.04, rel=0.01))


def test_averaging_makes_any_network_equivariant() -> None:
    torch.manual_seed(0)
    x, plain = torch.randn(16, 12), robot.PlainArm(8)
    assert equivariance_error(plain, x, robot.MIRROR).verdict == "violated"
    assert equivariance_error(averaged(plain, robot.MIRROR), x, robot.MIRROR).verdict == "holds"


def test_a_law_that_fails_and_a_control_that_does_not_are_alarms() -> None:
    data = burgers.DEMO.load()
    good = burgers.laws(data)
    levels = [f.level for f in closing(burgers.DEMO, good, {})]
    assert levels == ["good"] * 3
    swapped = [replace(law, control=not law.control) for law in good]
    found = closing(burgers.DEMO, swapped, {})
    assert [f.level for f in found] == ["alarm"] * 3
    assert "do not trust the comparison" in found[0].text


def test_every_demo_is_found_by_name_and_a_wrong_name_is_told_the_nearest() -> None:
    assert all(demo(name) is found and found.name == name for name, found in DEMOS.items())
    with pytest.raises(ValueError, match="did you mean 'flow'"):
        demo("flwo")
