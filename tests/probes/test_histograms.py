"""Histograms count every entry once, in bins that are symmetric and spaced by equal factors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.histograms import Histograms
from eqtoolbox.record.bins import BINS, edges, histogram, packed
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs, mlp


def watched(steps: int = 3, spoil: Any = None, **options: Any) -> tuple[MemorySink, list[Any]]:
    """Arrays of a run, and weights and gradients as the loop had them."""
    torch.manual_seed(0)
    model, criterion, (x, y) = mlp(6, 8, 3), nn.CrossEntropyLoss(), blobs()
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    own: list[Any] = []
    with eq.attach(
        model, optimizer, criterion=criterion, budget=None, sinks=[sink],
        **{"schedule": 1, "on_error": "raise"} | options,
    ):  # fmt: skip
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            if spoil is not None:
                spoil(model)
            for name, p in model.named_parameters():
                own.append((name, p.detach().clone().numpy(), p.grad.clone().numpy()))
            optimizer.step()
    return sink, own


def test_every_weight_and_gradient_is_counted_as_numpy_counts_it() -> None:
    sink, own = watched(probes=[Histograms()])
    for k, (name, weight, gradient) in enumerate(own):
        step = k // 4
        for kind, values in (("weight", weight), ("gradient", gradient)):
            (packed_,) = [
                a for s, n, a in sink.arrays if (s, n) == (step, f"histogram/{kind}/{name}")
            ]
            wide = values.astype(np.float64)
            expected = np.histogram(wide, edges(np.abs(wide).max()))[0]
            assert packed_.shape == (2, BINS + 1)
            assert list(packed_[1]) == [*expected, 0]
            assert packed_[1].sum() == values.size
            (row,) = [
                r for r in sink.records if (r.step, r.name) == (step, f"histogram/{kind}/{name}")
            ]
            assert row.value == np.abs(wide).max()


def test_edges_are_symmetric_with_equal_factors_and_an_edge_at_zero() -> None:
    at = edges(3.0)
    assert at.shape == (BINS + 1,) and np.all(np.diff(at) > 0)
    assert np.array_equal(at, -at[::-1]) and at[BINS // 2] == 0 and at[-1] == 3.0
    factors = at[BINS // 2 + 2 :] / at[BINS // 2 + 1 : -1]
    assert factors == pytest.approx(10 ** (6 / 31))
    for nothing in (0.0, float("nan"), float("inf")):
        assert np.array_equal(edges(nothing), edges(1.0))


def test_what_was_packed_comes_back_and_what_is_not_finite_is_left_out() -> None:
    counts, at = histogram(np.array([np.nan, -np.inf, 0.0, -2.0, 2.0]))
    assert counts.sum() == 3 and counts[0] == 1 and counts[-1] == 1
    again, same = histogram(packed(counts, at))
    assert np.array_equal(again, counts) and np.array_equal(same, at)
    assert histogram(np.zeros(0))[0].sum() == 0


def test_entries_that_are_not_finite_are_told_and_in_no_bin() -> None:
    def spoil(model: nn.Module) -> None:
        model[0].weight.grad[0, :2] = torch.tensor([torch.nan, torch.inf])

    sink, _ = watched(1, spoil, probes=[Histograms()])
    (row,) = [r for r in sink.records if r.name == "histogram/gradient/0.weight"]
    (array,) = [a for _, n, a in sink.arrays if n == row.name]
    assert array[1].sum() == 46 and row.facts.number("not_finite") == 2
    assert row.status == "non_finite"
    (other,) = [r for r in sink.records if r.name == "histogram/weight/0.weight"]
    assert other.status == "ok"


def test_the_largest_weights_come_first_and_so_many_are_drawn() -> None:
    sink, _ = watched(1, probes=[Histograms(largest=2)])
    assert {n for _, n, _ in sink.arrays} == {
        f"histogram/{kind}/{name}" for kind in ("weight", "gradient")
        for name in ("0.weight", "2.weight")
    }  # fmt: skip


def test_pieces_of_a_large_weight_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = watched(1, probes=[Histograms()])[0].arrays
    monkeypatch.setattr("eqtoolbox.probes.histograms.AT_ONCE", 5)
    parts = watched(1, probes=[Histograms()])[0].arrays
    assert all(np.array_equal(a, b) for (_, _, a), (_, _, b) in zip(whole, parts, strict=True))


def test_a_word_adds_them_where_they_are_not_given_and_without_it_there_are_none() -> None:
    names = lambda **options: {n for _, n, _ in watched(2, **options)[0].arrays}
    assert not any(n.startswith("histogram/") for n in names(probes="light"))
    assert "histogram/weight/0.weight" in names(probes="light", histograms=True)
    both = watched(2, probes=[Histograms(largest=1)], histograms=True)[0]
    assert {n for _, n, _ in both.arrays} == {
        "histogram/weight/0.weight", "histogram/gradient/0.weight",
    }  # fmt: skip
    asked = watched(101, probes="light", histograms=True, schedule=None, spoil=None)[0]
    assert {s for s, n, _ in asked.arrays if n.startswith("histogram/")} == {0, 100}
