"""Under FSDP2 and HSDP charges and budgets are the whole model's, and nothing is gathered."""

from typing import Any

import pytest
import torch

from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.parameter import ContinuousSymmetry
from tests.distributed.engine import NETWORKS, every_charge
from tests.distributed.networks import cross_entropy
from tests.distributed.ranks import on_ranks, once

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

SETTINGS = {"two shards": (2, 1, "language pictures"), "two copies of two": (4, 2, "language")}
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=SETTINGS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What every rank of a sharded training found."""
    size, *setting = SETTINGS[request.param]
    name = f"charges_{size}"
    return once(tmp_path_factory, name, lambda _: on_ranks(size, every_charge, *setting))


def of_networks(ranks: Ranks) -> list[tuple[str, dict[str, Any]]]:
    return [(name, rank[name]) for rank in ranks for name in NETWORKS if name in rank]


def test_charges_and_causes_of_their_drift_are_those_of_the_whole_model(ranks: Ranks) -> None:
    """Of every family found, to 1e-12 of their size; bit by bit the same on all ranks."""
    for name, found in of_networks(ranks):
        assert found["same"]
        assert len(found["families"]) >= 7
        for number, gap in found["gaps"].items():
            assert gap < 1e-12, (name, number)
        assert found["closure"] < 1e-12


def test_every_family_that_one_process_finds_is_found(ranks: Ranks) -> None:
    """With the same units and status, from a trace of shapes and the engine's own gradient."""
    for name, found in of_networks(ranks[:1]):
        model, inputs, targets = NETWORKS[name]()
        whole = discover(model, (inputs, targets), lambda m, b: cross_entropy(m(b[0]), b[1]))
        expected = sorted(
            [s.family, s.name, s.dimension, s.status]
            for s in whole
            if isinstance(s, ContinuousSymmetry)
            and s.status in ("verified", "approximate")
            and s.family not in ("head_rotation", "input_rotation")  # nothing is conserved
        )
        assert [[*row] for row in found["found"]] == expected


def test_nothing_is_gathered(ranks: Ranks) -> None:
    """Sums of charges and one exchange of rows; the counter sees a gather where there is one."""
    for rank in ranks:
        assert any("all_gather" in call for call in rank["gathered"])
    for _, found in of_networks(ranks):
        assert set(found["calls"]) <= {"allreduce", "alltoall_base"}


def test_every_rank_holds_its_shards_alone(ranks: Ranks) -> None:
    """The clone of what it holds, of a model of unequal shards."""
    for rank in ranks:
        found = rank["language"]
        assert found["held"] <= 0.52 * found["of"]  # two shards of each model, in copies or not


def test_placements_without_one_stretch_are_refused_by_name(ranks: Ranks) -> None:
    """Sums that are due, shards in turns, and two axes of the mesh that cut one parameter."""
    for rank in ranks:
        partial, strided, *twice = rank["refused"]
        assert "w is placed as P(sum)" in partial
        assert "w is placed as _S(0, 2)" in strided
        assert all("w is cut along 2 axes of its mesh" in said for said in twice)
        assert len(twice) == (len(ranks) > 2)
