"""Discovery: every parameter symmetry of a model, as one function of the model and a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from eqtoolbox.isolation import RandomState
from eqtoolbox.objective import LossFunction, Objective
from eqtoolbox.symmetry.parameter import ParameterSymmetry


def find_symmetries(
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    run: Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
    moved_inputs: Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], Tensor] | None = None,
    model: nn.Module | None = None,
) -> list[ParameterSymmetry]:
    """Parameter symmetries of `loss` at `params`; see `eqtoolbox.symmetry.search`."""
    from eqtoolbox.symmetry.search import find  # brings scipy, which importing eqtoolbox does not

    return find.find_symmetries(loss, params, generator, run, dtype, moved_inputs, model)


def discover(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None = None
) -> list[ParameterSymmetry]:
    """Every parameter symmetry and equivariance of a model that the analyses find, verified.

    The model is not touched: a float64 evaluation with cloned buffers is traced and checked, in
    the modes (training or evaluation) that the model is in.

    Args:
        model: any module.
        batch: what `loss_fn` takes; without one, (inputs, targets), a mapping of keywords of a
            model that returns its loss, or inputs alone.
        loss_fn: (model, batch) -> scalar. None: cross-entropy for integer targets, else squared
            error; against a fixed random target when the batch is inputs alone.

    Returns:
        Symmetries with `name`, `family`, `dimension`, `status` and `residual`. A group within a
        larger one found is not listed again; proposals that fail are listed as broken. The list's
        attribute `notes` says what was not analysed.

    Raises:
        ValueError: lazy or no parameters, or a loss that cannot be evaluated or is not finite.

    Reference:
        Yang & Ziyin 2025 (arXiv 2512.21447).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = (torch.randn(16, 4), torch.randint(0, 3, (16,)))
        >>> [(s.family, s.dimension) for s in discover(net, data)][:2]
        [('rescale', 8), ('translation', 9)]
    """
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("lazy parameters have no shape yet: run the model once, then discover")
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    objective = Objective(
        model=model,
        loss_fn=loss_fn or _default_loss,
        batch=batch,
        random=RandomState(),
        buffers=buffers,
        dtype=torch.float64,
    )
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("the model has no trainable parameters: nothing can move")
    with objective.isolated():
        try:
            return find_symmetries(
                objective.loss,
                params,
                run=objective.output_and_loss,
                dtype=torch.float64,
                moved_inputs=objective.loss_of_moved_inputs,
                model=model,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the loss could not be analysed on this batch: {error}") from error


def _default_loss(model: nn.Module, batch: Any) -> Any:
    targets = None
    if isinstance(batch, Mapping):
        made = model(**batch)
        if getattr(made, "loss", None) is not None:
            return made
        output = getattr(made, "logits", made)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        output, targets = model(batch[0]), batch[1]
    else:
        output = model(batch)
    if targets is None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randn(output.shape, generator=generator).to(output)
    if targets.is_floating_point():
        return nn.functional.mse_loss(output, targets)
    if output.dim() == targets.dim() + 1 and output.shape[:-1] == targets.shape:
        return nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten())
    return nn.functional.cross_entropy(output, targets)
