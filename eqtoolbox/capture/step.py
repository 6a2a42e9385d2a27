"""A step: what one optimizer step began from and which gradients it used, kept until it is over."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.capture.gradient_scale import gradient_scale, scale_inside
from eqtoolbox.objective import Parameters
from eqtoolbox.snapshot import gradients, trainable


class Step:
    """The optimizer step that is being taken.

    Gradients are copied when they are final: as `step()` is called, or when its closure returns.
    What an optimizer makes of `.grad` while it steps (decay added, momentum, None) is its own.

    Args:
        model: whose parameters it moves.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before: Parameters | None = None  # theta_t; None while nothing is kept
        self.scale = 1.0  # of a gradient scaler
        self.missed: Exception | None = None  # why it could not be kept
        self.moved = False  # whether a closure was called at other parameters
        self._model = model
        self._memory: dict[str, Parameters] = {}  # of copies that only those see who keep nothing
        self._reuse = False
        self._noted: Parameters = {}  # gradients as the optimizers were given them
        self._here = self._closed = False  # a closure runs at theta_t; one has

    def keep(self, reuse: bool) -> None:
        """The parameters are still theta_t: copy what will be gone after the step.

        Args:
            reuse: the memory of the last such copies, where nobody can still hold them. At every
                step, new memory would cost more than the copy: its pages come one by one.
        """
        self.scale, self._reuse = gradient_scale(), reuse
        self.before = self._copied("theta", trainable(self._model))

    def unmoved(self) -> bool:
        """Whether the parameters are still those from before the step."""
        if self.before is None:
            return True
        current = trainable(self._model)
        return all(torch.equal(p, current[n]) for n, p in self.before.items() if n in current)

    def note_gradients(self, optimizer: Any) -> None:
        """The gradients of this optimizer are final: copy them, a scaler's scale taken out."""
        if self.before is None:
            return
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        given = {n: p.grad for n, p in trainable(self._model).items() if id(p) in own}
        kept = self._copied(
            f"gradient of {id(optimizer)}", {n: g for n, g in given.items() if g is not None}
        )
        scale = scale_inside(optimizer)
        if kept and scale != 1.0:
            torch._foreach_div_(list(kept.values()), scale)
        self._noted |= kept

    def closure_starts(self) -> None:
        """A closure of `step()` is called."""
        self._here = self.unmoved()
        self.moved = self.moved or not self._here

    def closure_ends(self, optimizer: Any) -> None:
        """It returned: its gradients are final, and those of the step where it ran at theta_t."""
        if self._here and not self._closed:
            self._closed = True
            self.note_gradients(optimizer)

    def gradient(self, named: Mapping[str, nn.Parameter]) -> Parameters | None:
        """The gradients that the step used, of the model's parameters; None if there are none."""
        return None if self.moved else gradients(named, self._noted)

    def over(self) -> None:
        """Keep nothing of it."""
        self.before, self.scale, self.missed, self._noted = None, 1.0, None, {}
        self.moved = self._closed = False

    def forget(self) -> None:
        """Give all memory back."""
        self.over()
        self._memory = {}

    def _copied(self, what: str, live: Mapping[str, Tensor]) -> Parameters:
        """Copies of these, dense."""
        now = {n: t.detach() for n, t in live.items()}
        dense = {n: t.to_dense() for n, t in now.items() if t.layout != torch.strided}
        if not self._reuse:
            return {n: dense[n] if n in dense else t.clone() for n, t in now.items()}
        now |= dense
        kept = self._memory.get(what, {})
        if kept.keys() != now.keys() or any(not _alike(kept[n], t) for n, t in now.items()):
            self._memory[what] = kept = {n: torch.empty_like(t) for n, t in now.items()}
        if now:
            torch._foreach_copy_(list(kept.values()), list(now.values()))
        return dict(kept)


def around_closure(
    args: Any, kwargs: Any, starts: Callable[[], None], ends: Callable[[], None]
) -> tuple[Any, Any] | None:
    """Arguments of `step` whose closure does the same and tells when; None if there is none."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        return None

    @functools.wraps(closure, updated=())
    def telling(*given: Any, **named: Any) -> Any:
        starts()
        result = closure(*given, **named)
        ends()
        return result

    if len(args) > 1:
        return (args[0], telling, *args[2:]), kwargs
    return args, {**kwargs, "closure": telling}


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
