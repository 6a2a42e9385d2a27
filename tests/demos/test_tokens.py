"""Tokens: a transformer without positions does not see the order, if the padding moves along."""

from dataclasses import replace

import pytest
import torch

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.tokens import DEMO, FORGOTTEN, SHUFFLES, UNKNOWN, load
from eqtoolbox.symmetry.testing import assert_equivariant


def test_passages_hold_words_then_padding_and_every_topic() -> None:
    (words, there), topics = load().train
    assert torch.equal(there, (words != 0).float())
    lengths = there.sum(1)
    assert torch.equal(there, (torch.arange(24) < lengths[:, None]).float())
    assert (lengths.min(), lengths.max()) == (8, 24)
    assert topics.bincount().tolist() == [400] * 8
    assert (words == UNKNOWN).sum() < 0.4 * there.sum()


@pytest.mark.slow
def test_only_the_set_transformer_ignores_the_order() -> None:
    data, short = load(), replace(DEMO, watched=32)
    ends = {entry: train(short, entry, data, steps=31, schedule=30) for entry in DEMO.entries}
    errors = {entry: end.errors[SHUFFLES.name] for entry, end in ends.items()}
    verdicts = {entry: error.verdict for entry, error in errors.items()}
    assert verdicts == {"positions": "violated", "augmented": "violated", "set": "holds"}
    assert "first broken at positions: TokenPositions: a positional" in errors["positions"].note
    assert ends["set"].score > 2 / 8
    inputs = data.test[0]
    network = ends["set"].network
    assert_equivariant(network, inputs, SHUFFLES)
    with pytest.raises(AssertionError, match="violated"):  # padding forgotten: a false alarm
        assert_equivariant(network, inputs, FORGOTTEN)
