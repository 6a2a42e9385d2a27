"""The model of a step as a function of its inputs, in evaluation mode, as its loss calls it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eqtoolbox.expect.deadline import check
from eqtoolbox.replay.call import Call, copied
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.reading import closed, opened
from eqtoolbox.replay.tree import map_tensors, tensors
from eqtoolbox.replay.unsaved import much
from eqtoolbox.watch.snapshot import NotApplicable

Found = TypeVar("Found")


@dataclass(frozen=True)
class Prediction:
    """f and f(x) of one step, inside one scope of `predicting`.

    One scope for all evaluations saves their set-up, and a model that draws random numbers in
    evaluation mode is seen to do so.
    """

    objective: Objective
    params: Parameters
    model: nn.Module
    call: Call  # the loss's own, with f(x) and the loss
    made: dict[str, Any] = field(default_factory=dict)  # what several claims ask of it

    @property
    def inputs(self) -> Any:
        """First argument of the call."""
        return self.call.args[0] if self.call.args else next(iter(self.call.kwargs.values()))

    @property
    def outputs(self) -> Tensor:
        """f(x): the output itself, its `.logits`, or the first tensor in it."""
        return first_tensor(self.call.output)

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """f with another first argument; others are copied, cut or repeated to as many samples."""
        check()
        samples, given = len(self.inputs), len(inputs)

        def fitted(x: Tensor) -> Tensor:
            alike = x.dim() > 0 and len(x) == samples != given
            return copied(x[torch.arange(given) % samples] if alike else x)

        args, kwargs = self.call.args, self.call.kwargs
        if args:
            args, kwargs = map_tensors(fitted, (args[1:], kwargs))
            return first_tensor(self.model(inputs, *args, **kwargs))
        first, *others = kwargs
        kwargs = map_tensors(fitted, {name: kwargs[name] for name in others})
        return first_tensor(self.model(**{first: inputs}, **kwargs))

    @property
    def given(self) -> Any:
        """All arguments of the call: the only one, a tuple of them, or a dict by name."""
        args, kwargs = self.call.args, self.call.kwargs
        if not kwargs:
            return args[0] if len(args) == 1 else tuple(args)
        return dict(enumerate(args)) | dict(kwargs)

    @property
    def arguments(self) -> Any:
        """These as claims see them: dataclasses and named tuples opened, as by the audit."""
        return opened(self.given)

    def of_arguments(self, arguments: Any) -> Any:
        """The whole output, opened too, on arguments as `arguments` gives them."""
        check()
        return opened(self._answer(closed(arguments, self.given)))

    def _answer(self, arguments: Any) -> Any:
        args, kwargs = self.call.args, self.call.kwargs
        if not kwargs:
            return self.model(*((arguments,) if len(args) == 1 else tuple(arguments)))
        given = (arguments[i] for i in range(len(args)))
        return self.model(*given, **{name: arguments[name] for name in kwargs})

    def in_float64(self, body: "Callable[[Prediction], Found]") -> Found:
        """`body` of the same prediction with parameters, buffers and batch in float64."""
        params = {n: p.to(torch.float64) for n, p in self.params.items()}
        return predicting(self.objective.to(torch.float64), params, body)

    def loss(self) -> Callable[[Any], Tensor] | None:
        """The loss as a function of the whole output, opened, where so evaluated it is itself.

        None where it sees more than that, where it is random, and where it does not see all of
        its value through floating-point outputs (a model that returns its own loss).
        """
        if self.call.times != 1 or any(x.dim() == 0 for x in tensors(self.call.output)):
            return None

        def loss(y: Any) -> Tensor:
            return self.objective.loss_given(self.model, closed(y, self.call.output))

        try:
            with torch.no_grad():
                outputs = opened(self.call.output)
                once, again = float(loss(outputs)), float(loss(outputs))
        except Exception:  # whatever a loss raises that misses the inside of the model
            return None
        assert self.call.loss is not None
        agrees = math.isclose(once, float(self.call.loss), rel_tol=1e-4) and once == again
        return loss if agrees else None

    @property
    def classifies(self) -> bool:
        """Whether the batch holds integers, one a sample."""
        whole = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
        return any(x.dim() == 1 and x.dtype in whole for x in tensors(self.objective.batch))


def predicting(
    objective: Objective, params: Parameters, body: Callable[[Prediction], Found]
) -> Found:
    """`body` of the model at `params` as a function, after one evaluation of the loss.

    Raises:
        NotApplicable: the loss never calls the model as model(inputs).
    """
    objective = objective.single

    def inside(model: nn.Module) -> Found:
        try:
            with torch.no_grad():
                call = objective.call_of(model)
        except LookupError as reason:
            raise NotApplicable(str(reason)) from reason
        return body(Prediction(objective, params, model, call))

    graded = torch.is_grad_enabled()
    with objective.isolated(), torch.set_grad_enabled(graded):
        if much(tensors(objective.batch)):  # then f saves nothing, unless it differentiates inside
            with torch.no_grad():
                objective.evaluated(params)
        found: Found = objective.within(params, inside)
    return found


def first_tensor(output: Any) -> Tensor:
    """The output itself, its `.logits`, or the first tensor in it.

    Raises:
        NotApplicable: there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", logits)
    if found is None and isinstance(output, (tuple, list)):
        found = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(found, Tensor):
        raise NotApplicable(f"no output tensor in {type(output).__name__}")
    return found
