"""A Keras model and its optimizer as torch sees them: a module of tensors that can be exchanged.

Keras layers compute with their Variables, not with the parameters that torch registers; inside a
`StatelessScope` the Variables take the values that they are given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch import Tensor, nn


class KerasModel(nn.Module):
    """Calls a Keras model with this module's own parameters and buffers as its Variables.

    Trainable Variables are parameters; the others (statistics, seeds of dropout, frozen weights)
    are buffers, so that an evaluation starts from those of the step and moves none of them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._keras = [model]  # in a list, so that its parameters have no second names
        self._inside = False
        self.variables = {v.path: v for v in model.variables}
        trainable = {id(v) for v in model.trainable_variables}
        for path, variable in self.variables.items():
            if id(variable) in trainable:
                self.register_parameter(path, variable.value)
            else:
                self.register_buffer(path, variable.value)

    def forward(self, x: Any) -> Any:
        """Output of the Keras model, in training mode where this module is."""
        model = self._keras[0]
        with self.values():
            if getattr(model, "_call_has_training_arg", True):
                return model(x, training=self.training)
            return model(x)

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """This module and the layers: what an evaluation does to them is undone."""
        layers = self._keras[0]._flatten_layers()  # kept in lists, where torch does not find them
        found = {id(m): m for layer in layers for m in layer.modules()}
        yield from (self, *found.values())

    def loss(self, x: Any, y: Any, sample_weight: Any) -> Tensor:
        """What `compute_loss` gives for this batch; scalar."""
        model = self._keras[0]
        with self.values():
            y_pred = self(x)
            loss: Tensor = type(model).compute_loss(model, x, y, y_pred, sample_weight)
        return loss

    @contextmanager
    def values(self) -> Iterator[None]:
        """Scope in which the Variables have this module's values, and keep their own.

        Layers and losses compute in the type of these values, whatever their policy is.
        """
        if self._inside:
            yield
            return
        now = {**self._parameters, **self._buffers}
        dtype = next(p.dtype for p in self._parameters.values() if p is not None)
        scope = keras.StatelessScope(collect_losses=True, initialize_variables=False)
        scope.state_mapping = {id(v): now[path] for path, v in self.variables.items()}
        self._inside = True
        try:
            with computing_in(str(dtype).removeprefix("torch."), self._keras[0]), scope:
                yield
        finally:
            self._inside = False


@contextmanager
def computing_in(dtype: str, model: Any) -> Iterator[None]:
    """Scope in which layers and losses compute in this type and collect their losses apart."""
    layers = model._flatten_layers()
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    losses = [loss for loss in (compiled, *(f.loss for f in flat)) if hasattr(loss, "_dtype")]
    kept = ("_losses", "_loss_ids", "_dtype_policy")
    before = [(layer, {name: vars(layer)[name] for name in kept}) for layer in layers]
    before += [(loss, {"_dtype": loss._dtype}) for loss in losses]
    try:
        for layer, own in before[: len(layers)]:
            vars(layer).update(_losses=list(own["_losses"]), _loss_ids=set(own["_loss_ids"]))
            if layer.compute_dtype != dtype:
                vars(layer)["_dtype_policy"] = keras.DTypePolicy(dtype)
        for loss in losses:
            vars(loss)["_dtype"] = dtype
        yield
    finally:
        for thing, own in before:
            vars(thing).update(own)


class KerasOptimizer(torch.optim.Optimizer):
    """A Keras optimizer as a torch one that never steps itself: what it did, for those who look."""

    def __init__(self, optimizer: Any, model: KerasModel) -> None:
        self._optimizer, self._model = optimizer, model
        super().__init__(list(model.parameters()), {"lr": 0.0})
        self.read()

    @classmethod
    def of(cls, optimizer: Any, model: KerasModel) -> "KerasOptimizer":
        """One under the name of the Keras class, which says by which rule it steps."""
        kind = type(type(optimizer).__name__, (cls,), {"__module__": cls.__module__})
        made: KerasOptimizer = kind(optimizer, model)
        return made

    def starts(self) -> None:
        """The Keras optimizer is about to step; gradients come meanwhile, as from a closure."""
        for hook in tuple(self._optimizer_step_pre_hooks.values()):
            hook(self, (self, self.step), {})

    def ends(self) -> None:
        """It has stepped."""
        for hook in tuple(self._optimizer_step_post_hooks.values()):
            hook(self, (self,), {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Not to be called: Keras steps."""
        raise RuntimeError("Keras applies the gradients; this optimizer only tells about it")

    def read(self) -> None:
        """Take over the options, such as the learning rate of the coming step."""
        keras_one, group = self._optimizer, self.param_groups[0]
        group["lr"] = float(getattr(keras_one, "learning_rate", float("nan")))
        group["weight_decay"] = float(getattr(keras_one, "weight_decay", 0.0) or 0.0)
        group["momentum"] = float(getattr(keras_one, "momentum", 0.0) or 0.0)
        group["nesterov"] = bool(getattr(keras_one, "nesterov", False))
        if hasattr(keras_one, "beta_2"):
            group["betas"] = (float(keras_one.beta_1), float(keras_one.beta_2))
            group["amsgrad"] = bool(getattr(keras_one, "amsgrad", False))
        if hasattr(keras_one, "epsilon"):
            group["eps"] = float(keras_one.epsilon)

    def read_state(self) -> None:
        """Running averages under torch's names."""
        names = {
            "_momentums": "exp_avg",
            "_velocities": "exp_avg_sq",
            "_velocity_hats": "max_exp_avg_sq",
        }
        if "betas" not in self.param_groups[0]:
            return
        steps = float(self._optimizer.iterations.value)
        for parameter, variable in zip(
            self.param_groups[0]["params"], self._trained(), strict=True
        ):
            index = self._optimizer._get_variable_index(variable)
            state = {"step": steps}
            for ours, theirs in names.items():
                kept = getattr(self._optimizer, ours, None)
                if kept:
                    state[theirs] = kept[index].value
            self.state[parameter] = state

    def _trained(self) -> list[Any]:
        return [self._model.variables[name] for name, _ in self._model.named_parameters()]
