"""Graphs: betweenness and message passing move with the nodes, a flat matrix does not."""

import pytest
import torch

pytest.importorskip("networkx")

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.graphs import DEMO, NODES, RELABEL, ROWS, atlas, betweenness, laws, load
from eqtoolbox.symmetry.testing import assert_equivariant


def test_betweenness_is_that_of_closed_forms() -> None:
    """Star: all 15 pairs of leaves pass the hub. Path: node i lies between i (6 - i) pairs."""
    star = torch.zeros(NODES, NODES)
    star[0, 1:] = star[1:, 0] = 1.0
    path = torch.diag(torch.ones(NODES - 1), 1)
    found = betweenness(torch.stack([star, path + path.T]))
    assert found[0].tolist() == [1.0] + [0.0] * 6
    assert torch.allclose(found[1], torch.tensor([i * (6 - i) / 15 for i in range(7)]))


def test_the_atlas_has_853_connected_graphs_of_seven_nodes_and_targets_move_with_them() -> None:
    data = load()
    assert len(atlas()) == 853
    assert [law.result.verdict for law in laws(data)] == ["holds", "violated"]
    graphs = data.test[0][:16]
    assert_equivariant(betweenness, graphs, RELABEL)
    with pytest.raises(AssertionError, match="violated"):
        assert_equivariant(betweenness, graphs, ROWS)


def test_messages_keep_the_numbering_out_and_learn_more() -> None:
    data = load()
    ends = {entry: train(DEMO, entry, data, steps=201, schedule=200) for entry in DEMO.entries}
    errors = {entry: end.errors[RELABEL.name] for entry, end in ends.items()}
    verdicts = {entry: error.verdict for entry, error in errors.items()}
    assert verdicts == {"flat": "violated", "augmented": "violated", "messages": "holds"}
    assert "first broken at layers.0: Flatten" in errors["flat"].note
    assert errors["augmented"].value < 0.8 * errors["flat"].value
    assert ends["messages"].score < 0.7 * min(ends["flat"].score, ends["augmented"].score)
