"""Two gradients are compared by their inner products, of whatever type and size they are."""

import math

import pytest
import torch

from eqtoolbox.replay.gradient import compare

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cosine_and_ratio_are_those_of_the_flat_vectors(dtype: torch.dtype) -> None:
    r = {"w": torch.randn(40, 30, dtype=dtype), "b": torch.randn((), dtype=dtype)}
    g = {n: 0.5 * x + torch.randn_like(x) for n, x in r.items()} | {"empty": torch.zeros(0)}
    r["empty"] = torch.zeros(0)
    found = compare(r, g, r)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    one, two = (torch.cat([x.reshape(-1).to(wide) for x in v.values()]) for v in (r, g))
    cosine = float((one.conj() @ two).real / (one.norm() * two.norm()))
    assert math.isclose(found.cosine, cosine, rel_tol=1e-12)
    assert math.isclose(found.ratio, float(two.norm() / one.norm()), rel_tol=1e-12)
    assert found.cause, "they differ, and something is said of it"


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e37])
def test_neither_small_nor_large_gradients_are_lost(scale: float) -> None:
    r = {"w": scale * torch.ones(50)}
    found = compare(r, r, r)
    assert math.isclose(found.cosine, 1.0) and math.isclose(found.ratio, 1.0) and not found.cause


def test_gradients_that_are_zero_have_no_cosine() -> None:
    r = {"w": torch.zeros(3)}
    assert math.isnan(compare(r, r, r).cosine) and math.isnan(compare({}, {}, {}).ratio)
