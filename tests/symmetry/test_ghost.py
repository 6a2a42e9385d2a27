"""A trace without memory is the trace, and what it proposes is what is verified."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.demos.gpt import GPT
from eqtoolbox.weights.search.members import members
from eqtoolbox.weights.tracing.ghost import NeedsNumbers, ghost_trace
from eqtoolbox.weights.tracing.trace import trace
from tests.symmetry.architectures import ConvNext, Gated, Skip

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Looking(nn.Module):
    """Looks at a number of the data, and at one that depends on parameters if asked."""

    def __init__(self, number: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.number = number
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y if float(self.number(x, y)) > -1e9 else -y)


class Written(Looking):
    """Writes activations into a tensor that was data before."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros(len(x), 5)
        kept.copy_(torch.relu(self.a(x)))
        return self.b(kept)


def of_data(x: Tensor, _: Tensor) -> Tensor:
    return x.sum()


def of_both(_: Tensor, y: Tensor) -> Tensor:
    return y.sum()


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "skip": (Skip, X),
    "gated": (Gated, X),
    "convolutions": (ConvNext, IMAGES),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        IMAGES,
    ),
    "gpt": (lambda: GPT(8, 5), torch.arange(10).reshape(2, 5) % 8),
    "looks at data": (lambda: Looking(of_data), X),
}


def run(model: nn.Module, x: Tensor) -> Callable[[dict[str, Tensor]], tuple[None, Tensor]]:
    return lambda p: (None, torch.func.functional_call(model, p, (x,)).square().mean())


@pytest.mark.parametrize("kind", CASES)
def test_a_ghost_runs_the_same_operations_on_the_same_shapes(kind: str) -> None:
    torch.manual_seed(0)
    make, x = CASES[kind]
    model = make()
    params = {n: p.detach() for n, p in model.named_parameters()}
    real, ghost = trace(run(model, x), params), ghost_trace(run(model, x), params)

    def seen(found: object) -> list[tuple[str, list[tuple[int, ...]]]]:
        return [(n.name, [v.shape for v in n.inputs]) for n in found.nodes if n.name != "detach"]  # type: ignore[attr-defined]

    assert seen(ghost) == seen(real)
    assert ghost.value.is_meta and not real.value.is_meta


@pytest.mark.parametrize("model", [Looking(of_both), Written(of_both)], ids=["number", "written"])
def test_where_numbers_are_needed_they_are_asked_for(model: nn.Module) -> None:
    params = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(NeedsNumbers, match="of what depends on parameters"):
        ghost_trace(run(model, X), params)
    found = eq.weights.discover(model, X, verify=False)
    assert ("rescale", 5) in [(s.family, s.dimension) for s in found]
    with pytest.raises(ValueError, match="not on meta"):
        eq.weights.discover(model.to("meta"), X, verify=False)


@pytest.mark.parametrize("kind", ["skip", "gated", "batch norm", "gpt"])
def test_what_is_proposed_without_numbers_holds_what_is_verified(kind: str) -> None:
    torch.manual_seed(0)
    make, x = CASES[kind]
    model = make()
    target = torch.zeros(model(x).shape)
    from_gradients = {"translation", "bias_shift"}
    verified = {
        (s.family, s.name, s.dimension)
        for s in eq.weights.discover(model, (x, target))
        if s.status != "broken" and s.family not in from_gradients
    }
    found = eq.weights.discover(model.to("meta"), (x, target), verify=False)
    assert {s.status for s in found} == {"proposed"}
    assert verified <= {(s.family, s.name, s.dimension) for s in found}
    assert "nothing was verified" in found.notes[-1]


@pytest.mark.parametrize("mode", ["scale", "sign", "label"])
def test_an_analysis_goes_with_its_last_use(mode: Literal["scale", "sign", "label"]) -> None:
    model = GPT(8, 5).to("meta")
    run = lambda p: (None, functional_call(model, p, torch.arange(5)[None]).square().sum())
    traced = ghost_trace(run, dict(model.named_parameters()))
    gc.disable()
    try:
        members_found, state = members(traced, mode)
        gone = weakref.ref(state)
        del members_found, state
        assert gone() is None
    finally:
        gc.enable()


def test_parameters_on_meta_cannot_be_verified() -> None:
    with pytest.raises(ValueError, match="give verify=False"):
        eq.weights.discover(nn.Linear(6, 3, device="meta"), X)


MEMORY = """
import torch, eqtoolbox as eq
from torch import nn
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
def net(width):
    layers = [nn.Linear(width, width), nn.GELU()] * 2 + [nn.Linear(width, 3)]
    return nn.Sequential(*layers), (torch.randn(4, width), torch.arange(4) % 3)
verify = {verify}
eq.weights.discover(*net(8), verify=verify)
model, batch = net(4096)
before = peak()
eq.weights.discover(model, batch, verify=verify)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted as on Linux")
@pytest.mark.parametrize("verify", [False, True])
def test_memory_of_a_search(verify: bool) -> None:
    """Of 128 MiB of parameters: next to nothing, or a float64 copy and one gradient."""
    command = [sys.executable, "-c", MEMORY.format(verify=verify)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    mebibytes = float(output.splitlines()[-1])
    assert mebibytes < 50 if not verify else 200 < mebibytes < 128 * 4.5
