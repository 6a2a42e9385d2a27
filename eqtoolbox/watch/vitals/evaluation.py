"""The evaluation of a loss that vital signs listen to."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.tree import tensors
from eqtoolbox.watch.vitals.ear import Ear, Heard


def listen(
    run: Callable[[], Any],
    params: Mapping[str, Tensor],
    model: nn.Module | None = None,
    batch: Iterable[Tensor] = (),
) -> Heard:
    """Run a function of these very tensors and note what its operations are given and give.

    Args:
        run: the function.
        params: the tensors.
        model: what the function calls, if that is not all of it: what runs after the model
            returned is no layer.
        batch: what the function was given.

    Example:
        >>> w = -torch.ones(2, 3)
        >>> listen(lambda: torch.relu(torch.ones(4, 3) @ w.T), {"w": w}).silent["w"].tolist()
        [True, True]
    """
    heard = Heard()
    ear = Ear(params, heard)
    with torch.no_grad(), ear, ear.within(model):
        run()
    heard.directed = ear.directions.told(batch)
    return heard


def evaluated(objective: Objective, params: Parameters) -> tuple[Heard, Any, Tensor]:
    """What an evaluation of an objective says, the output of its model, and the loss."""
    try:
        heard, (output, loss) = _of(objective, params, Objective.output_and_loss)
    except RuntimeError:  # an output within `torch.func.vmap` is none outside of it
        heard, loss = _of(objective, params, Objective.loss)
        return heard, None, loss
    return heard, heard.last if output is None else output, loss  # of several calls


def _of(
    objective: Objective, params: Parameters, run: Callable[[Objective, Parameters], Any]
) -> tuple[Heard, Any]:
    """What is heard; a replay knows no hooks of the model but those that its loss registers."""
    heard = Heard()
    ear = Ear(params, heard)

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        with ear.within(model):
            return objective.loss_fn(model, batch)

    with torch.no_grad():
        with ear:
            made = run(replace(objective, loss_fn=loss_fn), params)
        heard.directed = ear.directions.told(tensors(objective.batch))
    return heard, made
