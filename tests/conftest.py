"""Small networks and data that many tests share."""

import gc
import logging
import os
import random
import signal
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell runs behind `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # small problems run fastest on one, also in fixtures of a whole module
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and in processes that tests start

HOOKS_OF_ALL_MODULES = [
    name
    for name, table in vars(torch_module).items()
    if name.startswith("_global_") and isinstance(table, dict)
]


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """What is there before a module stays: no search for garbage or a holder walks through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that takes more threads leaves none of them to those that run after it."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws depends on no other test, nor on which of them share its process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Warnings are logged, whatever a page of the documentation or a tracker configured."""
    logger = logging.getLogger("eqtoolbox")
    logger.disabled, logger.propagate = False, True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_forward_level_stays() -> Iterator[None]:
    """A test that leaves a level of forward derivatives open fails itself, not all after it."""
    yield
    left = forward_ad._current_level
    for level in range(left, -1, -1):
        forward_ad.exit_dual_level(level=level)
    assert left < 0, "a level of forward derivatives was left open"


@pytest.fixture(autouse=True)
def _no_hook_of_all_modules_stays() -> Iterator[None]:
    """A test that leaves a hook on all modules fails itself, not those that run after it."""
    yield
    left = [name for name in HOOKS_OF_ALL_MODULES if getattr(torch_module, name)]
    for name in left:
        getattr(torch_module, name).clear()
    assert not left, "hooks on all modules were left behind"


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths with the activation between them."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def blobs(samples: int = 64, features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs and labels that a network can learn."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, features, generator=generator)
    w = torch.randn(features, classes, generator=generator)
    return x, (x @ w).argmax(1)
