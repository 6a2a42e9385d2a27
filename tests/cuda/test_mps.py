"""Reductions on a device that has no float64, as Apple's has none: a tensor that refuses it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eqtoolbox.linalg.vectors import dot, norm
from eqtoolbox.symmetry.orbit import distance, double
from eqtoolbox.weights.families.discrete import Permutation, SignFlip, Slots
from eqtoolbox.weights.orbit import units
from eqtoolbox.weights.orbit.approach import approaches

REFUSED = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"


class Narrow(Tensor):
    """A tensor of the CPU that stands for one on MPS."""


class Mps(TorchFunctionMode):
    """Scope in which `Narrow` tensors say that they lie on MPS, and refuse float64 as it does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = any(isinstance(x, Narrow) for x in args)
        if here and func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("mps")
        if func in (Tensor.cpu, Tensor.to):
            return _moved(args[0], "cpu" if func is Tensor.cpu else "", *args[1:])
        if here and (func is Tensor.double or torch.float64 in (*args, *kwargs.values())):
            raise TypeError(REFUSED)
        return func(*args, **kwargs)


def _moved(x: Tensor, place: str, *target: Any) -> Tensor:
    """What `x.to(*target)` is where some tensors lie on MPS."""
    dtype, narrow = x.dtype, isinstance(x, Narrow) and not place
    for t in target:
        dtype = t if isinstance(t, torch.dtype) else t.dtype if isinstance(t, Tensor) else dtype
        if isinstance(t, Tensor):
            narrow = isinstance(t, Narrow)
        elif isinstance(t, (str, torch.device)):
            narrow = str(t) == "mps"
    if narrow and dtype == torch.float64:
        raise TypeError(REFUSED)
    with torch._C.DisableTorchFunction():
        return x.as_subclass(Tensor).to(dtype).as_subclass(Narrow if narrow else Tensor)


def narrow(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).as_subclass(Narrow)


def layer() -> tuple[tuple[Slots, ...], dict[str, Tensor]]:
    each = torch.arange(5)[:, None]
    slots = (Slots("in", 0, each), Slots("out", 1, each))
    return slots, {"in": narrow(5, 3), "out": narrow(4, 5)}


def exchanges() -> list[float]:
    slots, params = layer()
    found, _ = approaches(Permutation(name="m", dimension=4, slots=slots), params, 2, 0.1)
    return [a.distance for a in found]


def flips() -> list[float]:
    slots, params = layer()
    found, _ = approaches(SignFlip(name="m", dimension=5, slots=slots), params, 2, 0.1)
    return [a.distance for a in found]


REDUCTIONS: dict[str, Callable[[], Any]] = {
    "norm": lambda: norm({"w": narrow(7)}),
    "dot": lambda: dot({"w": narrow(7)}, {"w": narrow(7)}),
    "double": lambda: double(narrow(4, 2)).sum(),
    "distance": lambda: distance(narrow(4, 2), 2 * narrow(4, 2)),
    "sizes": lambda: units.sizes(SignFlip(name="m", dimension=5, slots=layer()[0]), layer()[1]),
    "exchanges": exchanges,
    "flips": flips,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_needs_no_float64_on_the_device(name: str) -> None:
    with Mps():
        found = REDUCTIONS[name]()
    expected = torch.as_tensor(REDUCTIONS[name]()).as_subclass(Tensor)
    assert torch.allclose(torch.as_tensor(found).as_subclass(Tensor).to(expected), expected)


def test_the_stand_in_refuses_float64() -> None:
    """Negative control of the test above."""
    with Mps():
        for refused in (
            Tensor.double,
            lambda x: x.to(torch.float64),
            lambda x: x.to("mps").double(),
        ):
            with pytest.raises(TypeError, match="float64"):
                refused(narrow(3))
        assert narrow(3).device.type == "mps"
        assert narrow(3).cpu().double().dtype == torch.float64
