"""The objective: a model and its training loss as pure functions of a dict of parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.deadline import check
from eqtoolbox.replay.belongings import Belongings, used_by
from eqtoolbox.replay.call import Call, answering, first_call, moving_inputs
from eqtoolbox.replay.checkpoints import recomputed_within
from eqtoolbox.replay.gradients import differentiated, required, valued
from eqtoolbox.replay.graph import ungraded
from eqtoolbox.replay.isolation import RandomState, flagged, isolated, random_streams
from eqtoolbox.replay.loss_parameters import LossParameters
from eqtoolbox.replay.modes import unheard
from eqtoolbox.replay.parts import pieces
from eqtoolbox.replay.precision import computing
from eqtoolbox.replay.scalar import scalar_loss
from eqtoolbox.replay.streams import BOTH, alone
from eqtoolbox.replay.thread.scope import current, only_here
from eqtoolbox.replay.thread.tables import Exchanged, settled_parameters
from eqtoolbox.replay.tree import map_tensors, tensors
from eqtoolbox.replay.unsaved import unsaved
from eqtoolbox.replay.whole import Whole

Parameters = dict[str, Tensor]
LossFunction = Annotated[
    Callable[[nn.Module, Any], Any],
    takes(2, "(model, batch) -> loss", "targets belong in the batch: (inputs, targets)"),
]


@dataclass(frozen=True, kw_only=True)
class Objective(Whole):
    """`loss_fn(model, batch)` at any parameters, with the buffers and random state of one step.

    Evaluations are repeatable (dropout masks frozen at the step's own) and leave no trace: the
    parameters and buffers given are swapped in for the call, buffers as fresh clones.
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

    def within(
        self, params: Mapping[str, Tensor], body: Callable[[nn.Module], Any], train: bool = False
    ) -> Any:
        """`body(model)` in evaluation mode, or the step's own, with `params` swapped in."""
        return self._run(params, body, train)

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
        """The model's output (its `logits`), None unless called once for one tensor, and loss."""
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

        def body(model: nn.Module) -> Tensor:
            with moving_inputs(model, move):
                return self._loss(model)

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
        return valued(lambda model: first_call(self._loss, model), model)

    def loss_of_output(
        self, params: Mapping[str, Tensor], output: Any, train: bool = False
    ) -> Tensor:
        """Training loss if the model answered `output` whatever its input (scalar)."""
        loss: Tensor = self._run(params, lambda model: self.loss_given(model, output), train)
        return loss

    def loss_given(self, model: nn.Module, output: Any) -> Tensor:
        """The loss if `model`, inside `within`, answered `output` whatever its input (scalar)."""
        with answering(model, output):
            return valued(self._loss, model)

    def parameters(self) -> Parameters:
        """Detached clones of the model's trainable parameters, cast to the objective's dtype."""
        return {
            name: self._cast(p.detach().clone())
            for name, p in settled_parameters(self.model).items()
            if p.requires_grad
        }

    def split(self, parts: int) -> list[tuple["Objective", float]]:
        """Objectives of `parts` pieces of the batch, each with its number of samples.

        The first tensor tells the batch size; every tensor of that length is cut.

        Raises:
            ValueError: the batch has fewer samples.
        """
        return [(replace(self, batch=b), n) for b, n in pieces(self.batch, parts)]

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
        evaluate = partial(self._evaluated, replay, params, body, train)
        return evaluate() if differentiated() else unsaved(evaluate, tensors(self.batch))

    def _evaluated(
        self, replay: Any, params: Mapping[str, Tensor], body: Callable[..., Any], train: bool
    ) -> Any:
        with unheard():
            exchanged = self._exchanged(params)

        @contextmanager
        def state() -> Iterator[None]:
            flags = self.flags if train else (False,) * len([*self.model.modules()])
            shown, beside = exchanged.here(), self._beside(params)
            with (
                flagged(self.model, flags),
                shown,
                beside,
                computing(self.dtype, self.mixed, self.model),
            ):
                yield

        check()
        cast = nullcontext() if self.autocast is None else _autocast(*self.autocast)
        replay.begin(self.belongings)
        replay.protect(self.beside.held if self.beside else {})
        drawn, kept = random_streams(self.random), ungraded(filter(_is, params.values()))
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
        live = settled_parameters(self.model)
        kept = self._cast({n: p.detach() for n, p in live.items() if n not in params})
        others = self.beside.live if self.beside else {}
        own = {n: p for n, p in params.items() if n not in others}
        given = {**kept, **own}
        found = {n: required(p, live[n]) for n, p in given.items() if n in live and _is(p)}
        buffers = {n: params.get(n, b).detach().clone() for n, b in self.buffers.items()}
        return {**given, **found, **self._cast(buffers)}

    def _beside(self, params: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Scope in which the loss finds its own parameters among `params`, or as they were."""
        return self.beside.swapped(params, self._cast) if self.beside else nullcontext()

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
        """The scope of evaluations (see `eqtoolbox.replay.isolation.isolated`).

        One evaluation opens it by itself; what differentiates its result, or evaluates often,
        holds it open.
        """
        return isolated(
            self.model,
            expected=used_by(self.loss_fn, self.batch),
            thorough=thorough,
            draws=draws or (alone() and any(piece.random.moves & BOTH for piece in self.pieces)),
        )


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast without its cache of weights, which would keep those of other parameters."""
    return torch.autocast(device, dtype=dtype, cache_enabled=False)


def _is(entry: Any) -> bool:
    """Whether it is there, and not made when it is read."""
    return isinstance(entry, Tensor)
