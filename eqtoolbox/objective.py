"""The objective: a model and its training loss as pure functions of a dict of parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from eqtoolbox.capture.batch import map_tensors, tensors
from eqtoolbox.capture.checkpoints import recomputed_within
from eqtoolbox.capture.loss_parameters import LossParameters
from eqtoolbox.capture.parts import in_parts
from eqtoolbox.deadline import check
from eqtoolbox.expect.bounds import takes
from eqtoolbox.isolation import RandomState, flagged, isolated, random_streams
from eqtoolbox.reading import opened
from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.gradients import required, valued
from eqtoolbox.replay.graph import ungraded
from eqtoolbox.replay.scope import current, only_here, place
from eqtoolbox.replay.streams import BOTH, alone
from eqtoolbox.replay.tables import Exchanged
from eqtoolbox.replay.unmixed import unmixed
from eqtoolbox.replay.widened import Widened

Parameters = dict[str, Tensor]
LossFunction = Annotated[
    Callable[[nn.Module, Any], Any],
    takes(2, "(model, batch) -> loss", "targets belong in the batch: (inputs, targets)"),
]


class NotALoss(TypeError):
    """What a loss function returned is no scalar loss."""


@dataclass(frozen=True)
class Call:
    """The first call of the model inside the loss: its arguments and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    loss: Tensor | None = None  # what the loss came to, scalar
    times: int = 1  # how often the loss called the model


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
    flags: tuple[bool, ...] = ()  # training flags of all modules; empty: as they are
    mutates: bool = False  # the loss changes its batch in place
    dtype: torch.dtype | None = None  # floating-point type of everything; None: as trained
    autocast: tuple[str, torch.dtype] | None = None  # device and type of an autocast around it
    mixed: bool = True  # autocasts that the loss and the model enter by themselves are on
    belongings: Belongings | None = None  # what it could reach when the step evaluated it
    beside: LossParameters | None = None  # parameters of the loss that the model has not

    def loss(self, params: Mapping[str, Tensor]) -> Tensor:
        """Training loss at `params` (scalar), in the modes the training step ran in."""
        return self._scalar(params, train=True)

    __call__ = loss

    @contextmanager
    def scope(self, params: Mapping[str, Tensor]) -> Iterator[None]:
        """Keeps `params` swapped in; checkpointed layers run forward again in the backward."""
        with self._exchanged(params).here(), self._beside(params):
            yield

    def evaluated(self, params: Mapping[str, Tensor]) -> Tensor:
        """The same loss with the model in evaluation mode."""
        return self._scalar(params, train=False)

    def within(self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any]) -> Any:
        """`body(model)` in evaluation mode with `params` swapped in."""
        return self._run(params, body, train=False)

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """The model's output at `params` in the training step's modes, as its loss calls it.

        Raises:
            LookupError: the loss calls the model not once, or the output is no single tensor.
        """
        made, _ = self._made(params)
        if len(made) != 1 or not isinstance(made[0], Tensor) or made[0].dim() == 0:
            raise LookupError("it needs a loss that calls the model once for one output tensor")
        return made[0]

    def output_and_loss(self, params: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """The model's output, None unless it is called once for one tensor, and its loss.

        Of an output with `logits` these are taken.
        """
        made, loss = self._made(params)
        output = getattr(made[0], "logits", made[0]) if len(made) == 1 else None
        single = isinstance(output, Tensor) and output.dim() > 0
        return (output if single else None), loss

    def _made(self, params: Mapping[str, Tensor]) -> tuple[list[Any], Tensor]:
        """What each call of the model returned, and the loss."""

        def body(model: nn.Module) -> tuple[list[Any], Tensor]:
            made: list[Any] = []
            noting = only_here(lambda _, __, output: made.append(output))
            handle = model.register_forward_hook(noting)
            try:
                return made, self._loss(model)
            finally:
                handle.remove()

        found: tuple[list[Any], Tensor] = self._run(params, body)
        return found

    def loss_of_moved_inputs(
        self, params: Mapping[str, Tensor], move: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Training loss with `move` applied to the model's first floating-point argument."""

        def moved(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            floating = [isinstance(x, Tensor) and x.is_floating_point() for x in args]
            first = floating.index(True) if any(floating) else len(args)
            return tuple(move(x) if k == first else x for k, x in enumerate(args))

        def body(model: nn.Module) -> Tensor:
            handle = model.register_forward_pre_hook(only_here(moved), prepend=True)
            try:
                return self._loss(model)
            finally:
                handle.remove()

        loss: Tensor = self._run(params, body)
        return loss

    @cached_property
    def call(self) -> Call:
        """How the loss calls the model at its live parameters in evaluation mode.

        Raises:
            LookupError: the loss never calls the model itself.
        """
        with torch.no_grad():
            found: Call = self.within({}, self.call_of)
        return found

    def call_of(self, model: nn.Module) -> Call:
        """The loss's first call of `model`, inside `within`, its output and the loss that it had.

        Raises:
            LookupError: the loss never calls the model itself.
        """
        return valued(self._call_of, model)

    def _call_of(self, model: nn.Module) -> Call:
        calls: list[Call] = []
        given: list[tuple[Any, Any]] = []  # before hooks of the user's change them

        def take(_: nn.Module, args: Any, kwargs: Any) -> None:
            given.append((args, kwargs))

        def note(_: nn.Module, __: Any, output: Any) -> None:
            args, kwargs = given.pop()
            if any(map(_transformed, tensors(output))):
                raise LookupError(
                    "the loss calls the model inside a transformation of torch.func: data "
                    "symmetries need a call of the model itself"
                )
            calls.append(Call(args, kwargs, output))

        handles = (
            model.register_forward_pre_hook(only_here(take), with_kwargs=True, prepend=True),
            model.register_forward_hook(only_here(note)),
        )
        try:
            loss = self._loss(model)
        finally:
            for handle in handles:
                handle.remove()
        if not calls or not (calls[0].args or calls[0].kwargs):
            raise LookupError(
                "the loss never calls the model as model(inputs): data symmetries need that call"
            )
        return replace(calls[0], loss=loss, times=len(calls))

    def loss_of_output(
        self, params: Mapping[str, Tensor], output: Any, train: bool = False
    ) -> Tensor:
        """Training loss if the model answered `output` whatever its input (scalar)."""
        loss: Tensor = self._run(params, lambda model: self.loss_given(model, output), train)
        return loss

    def loss_given(self, model: nn.Module, output: Any) -> Tensor:
        """The loss if `model`, inside `within`, answered `output` whatever its input (scalar)."""
        own = {k: v for k, v in model.__dict__.items() if k == "forward"}
        here, live = place(), model.forward
        model.__dict__["forward"] = lambda *given, **named: (
            output if place() == here else live(*given, **named)
        )
        try:
            return valued(self._loss, model)
        finally:
            model.__dict__.pop("forward")
            model.__dict__.update(own)

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
        if in_parts(opened(self.batch)):
            raise ValueError("rows of this batch are parts of samples, which cannot be cut apart")
        leaves = [x for x in tensors(self.batch) if x.dim() > 0]
        samples = len(leaves[0]) if leaves else 0
        if samples < parts:
            raise ValueError(f"expected at least {parts} samples to split, got {samples}")
        edges = [samples * i // parts for i in range(parts + 1)]

        def piece(start: int, end: int) -> "Objective":
            def cut(x: Tensor) -> Tensor:
                return x[start:end] if x.dim() > 0 and len(x) == samples else x

            return replace(self, batch=map_tensors(cut, self.batch))

        return [(piece(a, b), float(b - a)) for a, b in pairwise(edges)]

    def to(self, dtype: torch.dtype) -> "Objective":
        """The same objective evaluated in another floating-point type."""
        return replace(self, dtype=dtype)

    def unmixed(self) -> "Objective":
        """The same objective in the parameters' own precision: no autocast, around it or inside."""
        return replace(self, autocast=None, mixed=False)

    def halved(self) -> "Objective":
        """The same objective on the first half of its batch.

        Raises:
            ValueError: the batch has one sample only, or none that can be counted.
        """
        return self.split(2)[0][0]

    @property
    def single(self) -> "Objective":
        """One call of the loss function: the last, where several were summed."""
        return self

    @property
    def pieces(self) -> "list[Objective]":
        """Objectives whose sum this is, each with a graph of its own."""
        return [self]

    def _loss(self, model: nn.Module) -> Tensor:
        return scalar_loss(self.loss_fn(model, self._batch()))

    def _scalar(self, params: Mapping[str, Tensor], train: bool) -> Tensor:
        loss: Tensor = self._run(params, self._loss, train)
        return loss

    def _run(
        self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any], train: bool = True
    ) -> Any:
        """`body(model)` with these parameters swapped in, which leaves nothing behind."""
        replay = current()
        if replay is None:
            graded = torch.is_grad_enabled()
            with self.isolated(), torch.set_grad_enabled(graded):
                return self._run(params, body, train)
        exchanged = self._exchanged(params)

        @contextmanager
        def state() -> Iterator[None]:
            flags = self.flags if train else (False,) * len([*self.model.modules()])
            shown, beside = exchanged.here(), self._beside(params)
            with flagged(self.model, flags), shown, beside, self._precision():
                yield

        check()
        cast = nullcontext() if self.autocast is None else _autocast(*self.autocast)
        replay.begin(self.belongings)
        replay.protect(self.beside.held if self.beside else {})
        drawn, kept = random_streams(self.random), ungraded(params.values())
        with kept, drawn, cast, recomputed_within(state), state():
            try:
                return valued(body, self.model)
            except Exception as error:
                if replay.failures:
                    raise replay.failures[0] from error
                raise

    def _exchanged(self, params: Mapping[str, Tensor]) -> Exchanged:
        """What the model holds meanwhile; of a step that was caught all first buffers are known."""
        return Exchanged(self.model, self._state(params), whole=self.belongings is not None)

    def _state(self, params: Mapping[str, Tensor]) -> Parameters:
        """Parameters to differentiate, those not given as they are, fresh clones of the buffers.

        What trains requires gradients here, too: losses differentiate by it.
        """
        live = dict(self.model.named_parameters())
        kept = self._cast({n: p.detach() for n, p in live.items() if n not in params})
        others = self.beside.live if self.beside else {}
        own = {n: p for n, p in params.items() if n not in others}
        found = {n: required(p, live[n]) if n in live else p for n, p in {**kept, **own}.items()}
        return {**found, **self._cast(_clones(self.buffers))}

    def _beside(self, params: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Scope in which the loss finds its own parameters among `params`, or as they were."""
        return self.beside.swapped(params, self._cast) if self.beside else nullcontext()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Scope of the floating-point type asked for, whatever the loss itself asks for."""
        with ExitStack() as scope:
            if self.dtype == torch.float64:
                trained = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
                scope.enter_context(Widened(min(trained, key=_bits, default=torch.float32)))
            if self.dtype is not None or not self.mixed:
                scope.enter_context(unmixed())
            yield

    def _batch(self) -> Any:
        fresh = map_tensors(lambda x: x.clone() if self.mutates else x, self.batch)
        replay = current()
        if replay is not None and replay.exchange:
            fresh = tree_map(lambda x: replay.exchange.get(id(x), x), fresh)
        return self._cast(fresh)  # in new containers: losses pop

    def _cast(self, tree: Any) -> Any:
        if self.dtype is None:
            return tree

        return map_tensors(lambda x: x.to(self.dtype) if x.is_floating_point() else x, tree)

    def isolated(self, thorough: bool = False, draws: bool = False) -> Any:
        """The scope of evaluations (see `eqtoolbox.isolation.isolated`).

        One evaluation opens it by itself; what differentiates its result, or evaluates often,
        holds it open.
        """
        return isolated(
            self.model,
            expected=used_by(self.loss_fn, self.batch),
            thorough=thorough,
            draws=draws or (alone() and any(piece.random.moves & BOTH for piece in self.pieces)),
        )


def used_by(loss_fn: Any, batch: Any) -> tuple[Any, ...]:
    """The loss function, and what its batch holds besides tensors."""
    kept = (Tensor, nn.Module, str, int, float, bool, bytes, type(None))
    return (loss_fn, *(x for x in tree_leaves(batch) if not isinstance(x, kept)))


def scalar_loss(result: Any) -> Tensor:
    """The scalar a loss function returned, see `loss_tensor`, without dimensions."""
    return loss_tensor(result).reshape(())


def loss_tensor(result: Any) -> Tensor:
    """The tensor of one element in it: itself, `(loss, ...)`, `.loss` or `["loss"]`.

    Raises:
        NotALoss: there is none.
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
        raise NotALoss(
            "expected the loss as a scalar tensor, (loss, ...), an object with .loss or a mapping "
            f"with 'loss', got {got}; reduce it, e.g. loss.mean()"
        )
    return loss


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast without its cache of weights, which would keep those of other parameters."""
    return torch.autocast(device, dtype=dtype, cache_enabled=False)


def _transformed(tensor: Tensor) -> bool:
    """Whether it means something inside a transformation of torch.func only."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _clones(tensors: Mapping[str, Tensor]) -> Parameters:
    return {name: t.detach().clone() for name, t in tensors.items()}
