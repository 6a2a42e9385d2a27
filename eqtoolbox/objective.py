"""The objective: a model and its training loss as pure functions of a dict of parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_leaves, tree_map

from eqtoolbox.isolation import RandomState, evaluation, isolated, random_streams

Parameters = dict[str, Tensor]
LossFunction = Callable[[nn.Module, Any], Any]


class _Scope(nn.Module):
    """Runs `body(model)`; `functional_call` on it keeps parameters swapped for the whole body."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[nn.Module], Any]) -> Any:
        return body(self.model)


@dataclass(frozen=True)
class Call:
    """One call of the model inside the loss: its arguments and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True, kw_only=True)
class Objective:
    """`loss_fn(model, batch)` at any parameters, with the buffers and random state of one step.

    Evaluations are repeatable (dropout masks frozen at the step's own) and leave no trace: the
    parameters given are swapped in for the call, buffers are fresh clones each time.
    """

    model: nn.Module
    loss_fn: LossFunction
    batch: Any
    random: RandomState
    buffers: Parameters
    modules: tuple[nn.Module, ...] = field(default=())  # further modules the loss calls
    dtype: torch.dtype | None = None  # floating-point type of everything; None: as trained
    autocast: tuple[str, torch.dtype] | None = None  # device and type of an autocast around it

    def loss(self, params: Mapping[str, Tensor]) -> Tensor:
        """Training loss at `params` (scalar), in the modes the training step ran in."""
        return self._scalar(params, train=True)

    __call__ = loss

    @contextmanager
    def scope(self, params: Mapping[str, Tensor]) -> Iterator[None]:
        """Keeps `params` swapped in; checkpointed layers run forward again in the backward."""
        swapped = {f"model.{name}": tensor for name, tensor in self._state(params).items()}
        with _reparametrize_module(_Scope(self.model), swapped, tie_weights=True):
            yield

    def evaluated(self, params: Mapping[str, Tensor]) -> Tensor:
        """The same loss with the model in evaluation mode."""
        return self._scalar(params, train=False)

    def predict(self, params: Mapping[str, Tensor], inputs: Tensor) -> Any:
        """Model output on `inputs` in evaluation mode, other arguments as in the training step.

        Given fewer samples than the step had, other arguments are cut to as many.
        """
        samples, given = len(self.inputs), len(inputs)

        def cut(x: Any) -> Any:
            batched = isinstance(x, Tensor) and x.dim() > 0 and len(x) == samples
            return x[:given] if batched else x

        args, kwargs = tree_map(cut, self._cast((self.call.args, self.call.kwargs)))
        if args:
            args = (inputs, *args[1:])
        else:
            kwargs = {**kwargs, next(iter(kwargs)): inputs}
        return self._run(params, lambda model: model(*args, **kwargs), train=False)

    @property
    def arguments(self) -> Any:
        """All arguments of the model's call: the only one, a tuple of them, or a dict by name."""
        args, kwargs = self._cast((self.call.args, self.call.kwargs))
        if not kwargs:
            return args[0] if len(args) == 1 else tuple(args)
        return dict(enumerate(args)) | dict(kwargs)

    def answer(self, params: Mapping[str, Tensor], arguments: Any) -> Any:
        """Model output in evaluation mode on arguments as `arguments` gives them."""
        args, kwargs = self.call.args, self.call.kwargs
        if not kwargs:
            given = (arguments,) if len(args) == 1 else tuple(arguments)
            return self.within(params, lambda model: model(*given))
        given = tuple(arguments[i] for i in range(len(args)))
        named = {name: arguments[name] for name in kwargs}
        return self.within(params, lambda model: model(*given, **named))

    def within(self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any]) -> Any:
        """`body(model)` in evaluation mode with `params` swapped in."""
        return self._run(params, body, train=False)

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """The model's output at `params` in the training step's modes, as its loss calls it.

        Raises:
            LookupError: the loss calls the model not once, or the output is no single tensor.
        """
        made: list[Any] = []

        def body(model: nn.Module) -> None:
            handle = model.register_forward_hook(lambda _, __, output: made.append(output))
            try:
                self.loss_fn(model, self._batch())
            finally:
                handle.remove()

        self._run(params, body)
        if len(made) != 1 or not isinstance(made[0], Tensor) or made[0].dim() == 0:
            raise LookupError("it needs a loss that calls the model once for one output tensor")
        return made[0]

    def output_and_loss(self, params: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """The model's output, None unless it is called once for one tensor, and its loss.

        Of an output with `logits` these are taken.
        """
        made: list[Any] = []

        def body(model: nn.Module) -> Tensor:
            handle = model.register_forward_hook(lambda _, __, output: made.append(output))
            try:
                return scalar_loss(self.loss_fn(model, self._batch()))
            finally:
                handle.remove()

        loss: Tensor = self._run(params, body)
        output = getattr(made[0], "logits", made[0]) if len(made) == 1 else None
        single = isinstance(output, Tensor) and output.dim() > 0
        return (output if single else None), loss

    def loss_of_moved_inputs(
        self, params: Mapping[str, Tensor], move: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Training loss with `move` applied to the model's first floating-point argument."""

        def moved(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            floating = [isinstance(x, Tensor) and x.is_floating_point() for x in args]
            first = floating.index(True) if any(floating) else len(args)
            return tuple(move(x) if k == first else x for k, x in enumerate(args))

        def body(model: nn.Module) -> Tensor:
            handle = model.register_forward_pre_hook(moved)
            try:
                return scalar_loss(self.loss_fn(model, self._batch()))
            finally:
                handle.remove()

        loss: Tensor = self._run(params, body)
        return loss

    @cached_property
    def call(self) -> Call:
        """How the loss calls the model: the first call, with its evaluation-mode output.

        Raises:
            LookupError: the loss never calls the model itself.
        """
        calls: list[Call] = []

        def body(model: nn.Module) -> None:
            def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                calls.append(Call(args, kwargs, output))

            handle = model.register_forward_hook(note, with_kwargs=True)
            try:
                self.loss_fn(model, self._batch())
            finally:
                handle.remove()

        with torch.no_grad():
            self._run({}, body, train=False)
        if not calls or not (calls[0].args or calls[0].kwargs):
            raise LookupError(
                "the loss never calls the model as model(inputs): data symmetries need that call"
            )
        return calls[0]

    @property
    def inputs(self) -> Any:
        """First argument of the model's call, cast to the objective's dtype."""
        call = self.call
        return self._cast(call.args[0] if call.args else next(iter(call.kwargs.values())))

    def loss_of_output(
        self, params: Mapping[str, Tensor], output: Any, train: bool = False
    ) -> Tensor:
        """Training loss if the model answered `output` whatever its input (scalar)."""

        def body(model: nn.Module) -> Tensor:
            model.__dict__["forward"] = lambda *_, **__: output
            try:
                return scalar_loss(self.loss_fn(model, self._batch()))
            finally:
                model.__dict__.pop("forward")
                model.__dict__.update(own)

        own = {k: v for k, v in self.model.__dict__.items() if k == "forward"}
        loss: Tensor = self._run(params, body, train)
        return loss

    def parameters(self) -> Parameters:
        """Detached clones of the model's trainable parameters, cast to the objective's dtype."""
        return {
            name: self._cast(p.detach().clone())
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def split(self, parts: int) -> list[tuple["Objective", float]]:
        """Objectives of `parts` pieces of the batch, each with its number of samples.

        The first tensor tells the batch size; every tensor of that length is cut.

        Raises:
            ValueError: the batch has fewer samples.
        """
        leaves = [x for x in tree_leaves(self.batch) if isinstance(x, Tensor) and x.dim() > 0]
        samples = len(leaves[0]) if leaves else 0
        if samples < parts:
            raise ValueError(f"expected at least {parts} samples to split, got {samples}")
        edges = [samples * i // parts for i in range(parts + 1)]

        def piece(start: int, end: int) -> "Objective":
            def cut(x: Any) -> Any:
                whole = isinstance(x, Tensor) and x.dim() > 0 and len(x) == samples
                return x[start:end] if whole else x

            return replace(self, batch=tree_map(cut, self.batch))

        return [(piece(a, b), float(b - a)) for a, b in pairwise(edges)]

    def to(self, dtype: torch.dtype) -> "Objective":
        """The same objective evaluated in another floating-point type."""
        return replace(self, dtype=dtype)

    def _scalar(self, params: Mapping[str, Tensor], train: bool) -> Tensor:
        body = lambda model: scalar_loss(self.loss_fn(model, self._batch()))
        loss: Tensor = self._run(params, body, train)
        return loss

    def _run(
        self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any], train: bool = True
    ) -> Any:
        named = {f"model.{name}": tensor for name, tensor in self._state(params).items()}
        cast = nullcontext() if self.autocast is None else _autocast(*self.autocast)
        mode = nullcontext() if train else evaluation(self.model)
        with random_streams(self.random), mode, cast:
            return functional_call(_Scope(self.model), named, (body,))

    def _state(self, params: Mapping[str, Tensor]) -> Parameters:
        """Parameters to differentiate, the frozen ones detached, fresh clones of the buffers."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters() if n not in params}
        return {**self._cast(frozen), **self._cast(_clones(self.buffers)), **params}

    def _batch(self) -> Any:
        return self._cast(tree_map(lambda leaf: leaf, self.batch))  # fresh containers: losses pop

    def _cast(self, tree: Any) -> Any:
        if self.dtype is None:
            return tree

        def leaf(x: Any) -> Any:
            floating = isinstance(x, Tensor) and x.is_floating_point()
            return x.to(self.dtype) if floating else x

        return tree_map(leaf, tree)

    def isolated(self) -> Any:
        """The scope every evaluation must run in (see `eqtoolbox.isolation.isolated`)."""
        return isolated(self.model, *self.modules)


def scalar_loss(result: Any) -> Tensor:
    """The scalar a loss function returned: a tensor, `(loss, ...)`, `.loss` or `["loss"]`.

    Raises:
        TypeError: there is none.
    """
    loss = result
    if isinstance(result, Mapping):
        loss = result.get("loss")
    elif hasattr(result, "loss"):
        loss = result.loss
    elif isinstance(result, (tuple, list)) and result:
        loss = result[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
        raise TypeError(
            "expected the loss as a scalar tensor, (loss, ...), an object with .loss or a mapping "
            f"with 'loss', got {got}; reduce it, e.g. loss.mean()"
        )
    return loss.reshape(())


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast without its cache of weights, which would keep those of other parameters."""
    return torch.autocast(device, dtype=dtype, cache_enabled=False)


def _clones(tensors: Mapping[str, Tensor]) -> Parameters:
    return {name: t.detach().clone() for name, t in tensors.items()}
