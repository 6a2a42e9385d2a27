"""Devices that tests run on: the CPU always, the others where there are any."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product on a GPU


def _asked(request: pytest.FixtureRequest) -> str:
    device = str(request.param)
    if device.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return device


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with deterministic algorithms: two runs on a GPU differ by themselves else."""
    found = _asked(request)
    torch.use_deterministic_algorithms(found != "cpu")
    yield found
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """A CUDA device, likewise."""
    found = _asked(request)
    torch.use_deterministic_algorithms(True)
    yield found
    torch.use_deterministic_algorithms(False)
