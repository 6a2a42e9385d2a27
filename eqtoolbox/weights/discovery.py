"""Discovery: every parameter symmetry of a model, as one function of the model and a batch."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.replay.reading import opened
from eqtoolbox.replay.statistics import running
from eqtoolbox.replay.tree import tensors
from eqtoolbox.weights.epsilon import observed
from eqtoolbox.weights.search.found import Found, KnownSymmetries

if TYPE_CHECKING:  # for types alone
    from eqtoolbox.weights.search.enough import Divisible


def find_symmetries(
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    run: Callable[[dict[str, Tensor]], tuple[Tensor | None, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
    moved_inputs: Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], Tensor] | None = None,
    model: nn.Module | None = None,
    known: KnownSymmetries | None = None,
    statistics: Mapping[str, Tensor] | None = None,
    larger: bool = False,
    batch: Objective | None = None,
) -> Found:
    """Parameter symmetries of `loss` at `params`; see `eqtoolbox.weights.search`.

    Args:
        batch: that the loss is of, whose samples may be cut apart.
    """
    from eqtoolbox.weights.search import find

    samples = None if batch is None else _samples(batch)
    return find.find_symmetries(
        loss,
        params,
        generator,
        run,
        dtype,
        moved_inputs,
        model,
        known,
        statistics,
        larger,
        samples,
    )


def _samples(objective: Objective) -> "Divisible | None":
    """The samples of its batch; None where that cannot be cut."""
    from eqtoolbox.weights.search.enough import Divisible

    own = [x for x in tensors(objective.batch) if x.dim()]
    if not own or in_parts(opened(objective.batch)):
        return None

    def first(number: int) -> Any:
        return objective.split(len(own[0]) // number)[0][0].output_and_loss

    return Divisible(count=len(own[0]), first=first)


@checked
def discover(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    verify: bool = True,
    at: Mapping[str, Tensor] | None = None,
) -> Found:
    """Every parameter symmetry and equivariance of a model that the analyses find, verified.

    The model is not touched: a float64 evaluation with cloned buffers is traced and checked, in
    the modes (training or evaluation) that the model is in.

    Args:
        model: any module.
        batch: what `loss_fn` takes; without one, (inputs, targets), a mapping of keywords of a
            model that returns its loss, or inputs alone. Inputs are a tensor, a tuple or list of
            arguments, or a mapping of keywords.
        loss_fn: (model, batch) -> scalar. None: cross-entropy for integer targets, else squared
            error; against a fixed random target when the batch is inputs alone.
        verify: False: only propose, from what the loss runs. This takes no memory for parameters,
            which may be on meta, and no time that depends on their size; everything is "proposed".
        at: parameters by name to look at in place of the model's own.

    Returns:
        Symmetries with `name`, `family`, `dimension`, `status` and `residual`. A group within a
        larger one found is not listed again; proposals that fail are listed as broken. The list's
        attribute `notes` says what was not analysed.

    Raises:
        ValueError: lazy or no parameters, or a loss that cannot be evaluated or is not finite.
        TypeError: a loss that is no function, such as targets.

    Reference:
        Yang & Ziyin 2025 (arXiv 2512.21447).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = (torch.randn(16, 4), torch.randint(0, 3, (16,)))
        >>> [(s.family, s.dimension) for s in discover(net, data)][:2]
        [('rescale', 8), ('translation', 9)]
        >>> found = discover(net.to("meta"), data, verify=False)
        >>> found[0].family, found[0].dimension, found[0].status
        ('rescale', 8, 'proposed')
    """
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("lazy parameters have no shape yet: run the model once, then discover")
    _refuse_foreign(model)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    params = {n: p if at is None else at.get(n, p) for n, p in own.items()}
    if not params:
        raise ValueError("the model has no trainable parameters: nothing can move")
    objective = Objective(
        model=model,
        loss_fn=default_loss if loss_fn is None else loss_fn,
        batch=batch,
        random=RandomState(),
        buffers={n: b.detach().clone() for n, b in model.named_buffers()},
        dtype=torch.float64 if verify else None,
    )
    if not verify:
        return _proposed(objective, params)
    if any(p.is_meta for p in params.values()):
        raise ValueError("parameters on meta have no numbers to verify with: give verify=False")
    try:
        found = _found(objective, params)
        if _one_sample(batch) and not found.varied and _still(objective, params):
            found.notes = (*found.notes, _STILL)
        return found
    except (RuntimeError, TypeError, ValueError) as error:
        if _ONE_SAMPLE not in str(error):
            raise ValueError(f"the loss could not be analysed on this batch: {error}") from error
    found = _found(replace(objective, flags=_running_statistics(model)), params)
    found.notes = (*found.notes, _STATISTICS)
    return found


_ONE_SAMPLE = "Expected more than 1 value per channel when training"
_STATISTICS = (
    "one value per channel cannot be normalised as in training: batch normalisation was analysed "
    "with its running statistics, without the scale symmetries that it has on larger batches"
)
_STILL = (
    "a normalisation of this one sample finds a variance of zero and passes nothing on: what comes "
    "before it has no effect here, and symmetries of it mean nothing; give more samples"
)


def _one_sample(batch: Any) -> bool:
    shapes = [x.shape for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()]
    return bool(shapes) and shapes[0][0] == 1


def _still(objective: Objective, params: Mapping[str, Tensor]) -> bool:
    """Whether a normalisation divides by nothing but its epsilon, as those of Keras may."""
    given = replace(objective, dtype=None)  # a mean of one is exact in every type
    with given.isolated():
        try:
            amounts = observed(given.loss, {n: p.detach() for n, p in params.items()})
            return any(not bool(amount.any()) for amount in amounts)
        except RuntimeError:  # formulas in place of kernels may not run where these do
            return False


def _found(objective: Objective, params: Mapping[str, Tensor]) -> Found:
    with objective.isolated():
        return find_symmetries(
            objective.loss,
            params,
            run=objective.output_and_loss,
            dtype=torch.float64,
            moved_inputs=objective.loss_of_moved_inputs,
            model=objective.model,
            statistics=running(objective.buffers),
            batch=objective,
        )


def _proposed(objective: Objective, params: Mapping[str, Tensor]) -> Found:
    from eqtoolbox.weights.search import find

    try:
        with objective.isolated():
            run, statistics = objective.output_and_loss, running(objective.buffers)
            return find.propose_symmetries(run, params, statistics)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the loss could not be analysed on this batch: {error}") from error


def _running_statistics(model: nn.Module) -> tuple[bool, ...]:
    """Training flags of all modules, off for batch normalisations."""
    return tuple(m.training and not isinstance(m, _BatchNorm) for m in model.modules())


def _refuse_foreign(model: nn.Module) -> None:
    """Keras layers compute with Variables: parameters that are swapped in would not be read."""
    if any(kind.__module__.split(".")[0] == "keras" for kind in type(model).__mro__):
        raise ValueError(
            "expected a torch module, got a Keras model, whose layers read Variables and not "
            "parameters: give eqtoolbox.integrations.keras_model.KerasModel(model)"
        )


def default_loss(model: nn.Module, batch: Any) -> Any:
    """The loss of a model without one: see `discover`."""
    inputs, targets = _parts(model, batch)
    if isinstance(inputs, Mapping):
        made = model(**inputs)
        if targets is None and getattr(made, "loss", None) is not None:
            return made
    else:
        made = model(*inputs)
    output = getattr(made, "logits", made)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"expected a model with one tensor as output, got {type(output).__name__}: give "
            "loss_fn(model, batch) -> scalar"
        )
    if targets is None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randn(output.shape, generator=generator).to(output)
    if targets.is_floating_point():
        return nn.functional.mse_loss(output, targets)
    if output.dim() == targets.dim() + 1 and output.shape[:-1] == targets.shape:
        return nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten())
    return nn.functional.cross_entropy(output, targets)


def labelled(model: nn.Module, batch: Any) -> bool:
    """Whether `default_loss` finds targets in the batch, not inputs alone."""
    return isinstance(batch, Mapping) or _parts(model, batch)[1] is not None


def _parts(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Arguments or keywords of the model, and the targets or None."""
    targets = None
    inputs = batch
    if isinstance(batch, (tuple, list)):
        needed = _needed(model)
        if len(batch) == 2 and (needed < 2 or not isinstance(batch[0], Tensor)):
            inputs, targets = batch
        elif len(batch) == needed + 1:
            inputs, targets = batch[:-1], batch[-1]
    one = not isinstance(inputs, (tuple, list, Mapping))
    return ((inputs,) if one else inputs), targets


def _needed(model: nn.Module) -> int:
    """Number of arguments that the model cannot be called without."""
    try:
        given = inspect.signature(model.forward).parameters.values()
    except ValueError:  # what torch.jit traced has none
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in given)
