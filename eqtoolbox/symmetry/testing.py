"""Assertions for test suites, with the numbers and verdicts of the probes."""

import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import NotNegative, Seed
from eqtoolbox.replay.isolation import evaluation
from eqtoolbox.replay.reading import is_open, on_opened, opened
from eqtoolbox.replay.thread.unmixed import unmixed
from eqtoolbox.replay.widened import Widened
from eqtoolbox.symmetry.candidates import suggested
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.culprit import culprit, summary
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Group
from eqtoolbox.symmetry.orbit import Function, respond
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import on_tensors

_LONG = re.compile(r"-?\d+\.\d{3,}(e-?\d+)?")  # entries of a matrix
_TO_DO = {
    "holds": "it is off by rounding alone: give a larger tolerance=, or none",
    "violated": "mend what is named, or average the model over the group; if the claim is wrong, "
    "change its actions; what may stay, tolerance= lets pass",
    "unresolved": "mend the reason if one is named; else give inputs and model in float64",
    "trivial": "the output is the same for all inputs: give inputs or a model that tell them apart",
}


@checked
def assert_equivariant(
    function: nn.Module | Function,
    inputs: Any,
    symmetry: Claimed | Group,
    *,
    samples: int = 8,
    tolerance: NotNegative | None = None,
    seed: Seed = 0,
) -> EquivarianceResult:
    """Pass when f(S_g x) = R_g f(x) holds to the noise floor, the probe's own verdict.

    No absolute tolerance: a random map times 1e-4 fails like the map itself. A module is measured
    in evaluation mode; `unresolved` is settled in float64 where the module can be copied.

    Args:
        function: a module or a function of a batch; tuples of inputs are a module's arguments.
        inputs: x, a tensor or a tree of tensors; of a dataclass, a graph of PyTorch Geometric or a
            structure of ase the claim sees a dict. Rows may be nodes of several graphs, see
            `Equivariance.rows`.
        symmetry: the claim; or a group, which acts as is usual for such shapes, on outputs too
            where they are of the inputs' kind.
        samples: group elements at most.
        tolerance: relative error that passes whatever the floor; None for the verdict alone.
        seed: of the elements.

    Returns:
        The result, for further assertions.

    Raises:
        AssertionError: violated or unresolved, with error, floor, worst element, culprit, and what
            to do.
        ValueError: no action of the group is known for these shapes.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip, trivial
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> x = torch.randn(4, 1, 8, 8)
        >>> mirrored = Equivariance(Flip(), flip, trivial)
        >>> assert_equivariant(lambda x: x.mean((2, 3)), x, mirrored).verdict
        'holds'
        >>> assert_equivariant(torch.exp, x, Flip()).verdict  # an image: flipped as well
        'holds'
    """
    module = function if isinstance(function, nn.Module) else None
    call, batch = function if module is None else _called(module), inputs
    if not is_open(inputs):  # a dataclass, a graph of PyG, a structure of ase
        call, batch = on_opened(function, inputs), opened(inputs)
    with evaluation(module) if module is not None else nullcontext():
        if isinstance(symmetry, Group):
            with torch.no_grad():
                symmetry = suggested(symmetry, batch, respond(call, batch))
        result = _measure(call, batch, symmetry, samples, seed)
        if result.verdict == "unresolved" and module is not None and is_open(inputs):
            result = shadow(module, inputs, symmetry, samples=samples, seed=seed)
        passed = result.verdict == "holds"
        if tolerance is not None:
            passed = result.relative_error <= tolerance
        if passed:
            return result
        why = result.note
        if module is not None and is_open(inputs):
            why = summary(culprit(module, inputs, symmetry)) or why
    parts = ", ".join(f"{name} {error:.2g}" for name, error in result.parts.items())
    raise AssertionError(
        f"{symmetry.name} {result.verdict}: relative error {result.relative_error:.2g}, floor "
        f"{result.floor:.2g}, worst {result.worst:.2g} at "
        + _LONG.sub(lambda number: f"{float(number[0]):.3g}", repr(result.worst_element))
        + (f"; {parts}" if parts else "")
        + (f"; {why}" if why else "")
        + f"\nTo do: {_TO_DO[result.verdict]}"
    )


@checked
def shadow(
    module: nn.Module, inputs: Any, symmetry: Claimed, *, samples: int = 8, seed: Seed = 0
) -> EquivarianceResult:
    """The same measurement in float64: parameters, buffers and inputs; the module stays as it is.

    A violation that stays is the model's; one that falls to 1e-15 was rounding.
    """

    def wide(x: Tensor) -> Tensor:
        return x.to(torch.float64) if x.is_floating_point() else x

    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    state = {n: wide(t.detach()) for n, t in (*module.named_parameters(), *module.named_buffers())}

    def function(x: Any) -> Any:
        arguments = x if isinstance(x, tuple) else (x,)
        copied = {n: t.clone().requires_grad_(n in trained) for n, t in state.items()}
        with Widened(), unmixed():
            return torch.func.functional_call(module, copied, arguments)

    return _measure(function, on_tensors(wide, inputs), symmetry, samples, seed)


def _measure(
    function: Any, inputs: Any, symmetry: Equivariance, samples: int, seed: int
) -> EquivarianceResult:
    rng = torch.Generator().manual_seed(seed)
    return equivariance_error(function, inputs, symmetry, samples=samples, generator=rng)


def _called(module: nn.Module) -> Any:
    return lambda x: module(*x) if isinstance(x, tuple) else module(x)
