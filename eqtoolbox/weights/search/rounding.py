"""Rounding: slopes that are nothing else, told from slopes that are small.

Where a loss does not depend on a direction, terms cancel in its slope, and the coarser they are
rounded the more of them is left. A slope that vanishes, as behind saturated units, stays as it is.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.replay.thread.dispatch import Dispatch
from eqtoolbox.weights.parameter import Parameters
from eqtoolbox.weights.search.point import beside
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.verification import gradients
from eqtoolbox.weights.tracing.trace import mapped

log = logging.getLogger(__name__)


class Coarse(Dispatch):  # type: ignore[no-untyped-call]
    """Scope in which every result of a backward is x (1 + sqrt(u) xi), u its type's rounding.

    xi is standard normal. Views stay as they are, and what the forward makes: what is saturated
    there remains so.

    References:
        Parker 1997, Monte Carlo arithmetic.

    Example:
        >>> w, x = torch.ones(2, dtype=torch.float64), torch.randn(100, 2, dtype=torch.float64)
        >>> w.requires_grad_()
        tensor([1., 1.], dtype=torch.float64, requires_grad=True)
        >>> z = x + w
        >>> with Coarse():
        ...     (g,) = torch.autograd.grad((z - z.mean(0)).square().sum(), w)
        >>> bool((g.abs() > 1e-9).all() and (g.abs() < 1e-4).all())
        True
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        forward = torch._C._current_graph_task_id() < 0
        if forward or any(made.alias_info is not None for made in func._schema.returns):
            return result
        return mapped(self._rounded, result)

    def _rounded(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        generator = beside(x, self._generator)
        # drawn in float32, in a sixth of the time that float64 takes
        xi = torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)
        return x * xi.mul_(torch.finfo(x.dtype).eps ** 0.5).add_(1)  # x may be sparse


def significant(problem: Problem, slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which entries of these gradients are more than rounding: masks of their shapes.

    Those that do not grow when all is rounded coarsely: rounding does by the share that rounding
    grew, or from nothing at all.
    """
    found = {name: torch.ones_like(g, dtype=torch.bool) for name, g in slopes.items()}

    def receive(_: Parameters, gradient: Parameters) -> None:
        for name in slopes.keys() & gradient.keys():
            own, coarse = slopes[name].abs(), gradient[name].abs()
            kind = torch.finfo(own.dtype)
            found[name] = coarse <= kind.eps**-0.25 * own.clamp_min(kind.tiny)

    try:
        with Coarse():
            gradients(problem.loss, problem.point, receive, wanted=slopes.keys())
    except Exception as error:  # whatever a model's own code says to numbers that are not exact
        log.info("symmetries: slopes could not be told from rounding: %s", error)
    return found
