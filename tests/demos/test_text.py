"""Text: letters are numbered, the next one is the target, and the laws of transformers show."""

import pytest
import torch

from eqtoolbox.command.demo.training import train
from eqtoolbox.demos.text import DEMO, LENGTH, LETTERS, guessed, load


def test_targets_are_the_letters_that_come_next() -> None:
    data = load()
    for letters, targets in (data.train, data.test):
        assert letters.shape[1] == LENGTH
        assert torch.equal(letters[:, 1:], targets[:, :-1])
        assert int(letters.min()) >= 0 and int(letters.max()) < LETTERS
    assert (data.train[0] == 0).double().mean() < 0.01  # signs that have no number of their own


def test_the_score_counts_letters() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [0, 0, 0, 0]])]
    share, error = guessed(logits, torch.tensor([[0, 1, 2, 0], [0, 1, 1, 0]]))
    assert share == pytest.approx(5 / 8)
    assert error == pytest.approx(0.125)  # 3/4 and 2/4


@pytest.mark.slow
def test_the_optimizer_moves_the_charges_of_transformers_and_their_laws_hold() -> None:
    data = load()
    families = {
        "rotary": {"rope", "gated_rescale", "gain_rescale", "general_linear"},
        "gpt": {"bias_shift", "head_shift", "gain_rescale", "general_linear"},
    }
    for entry, expected in families.items():
        records = train(DEMO, entry, data, steps=8).records
        laws = {r.name.split("/")[2]: r.verdict for r in records if "noether/first_order" in r.name}
        assert expected <= laws.keys()
        assert set(laws.values()) == {"holds"}
        causes = {
            r.name.split("/")[1]: r.value
            for r in records
            if r.name.endswith("/general_linear") and "conservation/share" in r.name
        }
        assert sum(causes.values()) == pytest.approx(1, abs=1e-6)
        assert abs(causes["share_symmetry"]) < 1e-3 < abs(causes["share_optimizer"])
