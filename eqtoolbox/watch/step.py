"""A step: what one optimizer step began from and which gradients it used, kept until it is over."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.linalg.vectors import SMALL, norms
from eqtoolbox.replay.heap import give_back, large
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.capture.watched import Watched, gradients
from eqtoolbox.watch.gradient_scale import gradient_scale, scale_inside
from eqtoolbox.world.layout import local


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What is asked of a step whose gradients were not copied; read when it has arrived."""

    told: Callable[[], Tensor]  # whether theta_t was finite, and whether its smallest tensor moved
    before: dict[int, Callable[[], Tensor]]  # norms of the gradients as each optimizer stepped
    after: dict[int, tuple[tuple[str, ...], Callable[[], Tensor]]]  # and then, with their names

    @property
    def changed(self) -> list[int]:
        """The optimizers that changed their gradients."""
        then = {which: own().nan_to_num(nan=-1.0) for which, own in self.before.items()}
        now = {which: own().nan_to_num(nan=-1.0) for which, (_, own) in self.after.items()}
        return [which for which, own in then.items() if not torch.equal(own, now[which])]

    @property
    def not_finite(self) -> str:
        """The first gradient whose norm is not; empty if there is none."""
        for names, norms_of in self.after.values():
            for name, norm in zip(names, norms_of().tolist(), strict=True):
                if not math.isfinite(norm):
                    return name
        return ""


class Step:
    """The optimizer step that is being taken.

    Gradients are copied when they are final: as `step()` is called, or when its closure returns.
    What an optimizer makes of `.grad` while it steps (decay added, momentum, None) is its own. Of
    one that was seen to leave them as they are, as torch's own do, no copy is made where nobody can
    hold it: their norms tell if it still does.

    Args:
        watched: the parameters that it moves.
    """

    def __init__(self, watched: Watched) -> None:
        self.before: Parameters | None = None  # theta_t; None while nothing is kept
        self.scale = 1.0  # of a gradient scaler
        self.missed: BaseException | None = None  # why it could not be kept
        self.moved = False  # whether a closure was called at other parameters
        self.partial = False  # whether not all of several optimizers stepped
        self.finite = self.stepped = False  # whether theta_t was seen to be, and to be left
        self._watched = watched
        self._memory: dict[str, Parameters] = {}  # of copies that only those see who keep nothing
        self._reuse = self._lends = False
        self._noted: dict[int, Parameters] = {}  # gradients as each optimizer was given them
        self._norms: dict[int, Tensor] = {}  # of those that were not copied
        self._spares: dict[int, bool] = {}  # whether an optimizer leaves its gradients as they are
        self._given: dict[int, Parameters] = {}  # live ones to compare with their copies
        self._here = self._closed = False  # a closure runs at theta_t; one has

    def keep(self, reuse: bool, lends: bool) -> None:
        """The parameters are still theta_t: copy what will be gone after the step.

        Args:
            reuse: the memory of the last such copies, where nobody can still hold them. At every
                step, new memory would cost more than the copy: its pages come one by one.
            lends: gradients as they are, to those who hold nothing.
        """
        self.scale, self._reuse, self._lends = gradient_scale(), reuse, lends
        self.before = self._copied("theta", self._watched.trainable())

    def unmoved(self) -> bool:
        """Whether the parameters are still those from before the step."""
        if self.before is None:
            return True
        return self._same(self.before, self._watched.trainable())

    def asked(self, optimizer: Any, args: Any, kwargs: Any, inside: Callable[..., None]) -> Any:
        """`step` was called with these: note its gradients now, or when its closure returns.

        Args:
            inside: calls a function in the midst of the training step.

        Returns:
            (args, kwargs) with a closure that does the same and tells when it runs; else None.
        """
        closure = closure_of(args, kwargs)
        if self.before is None or "grad_scaler" in kwargs:  # which scale, it alone knows
            return None
        self._closed = False
        if not callable(closure):
            inside(self._note_gradients, optimizer)
            return None

        @functools.wraps(closure, updated=())
        def telling(*given: Any, **named: Any) -> Any:
            inside(self._closure_starts, optimizer)
            result = closure(*given, **named)
            inside(self._closure_ends, optimizer)
            return result

        if len(args) > 1:
            return (args[0], telling, *args[2:]), kwargs
        return args, {**kwargs, "closure": telling}

    def _closure_starts(self, optimizer: Any) -> None:
        """Another of several optimizers may have stepped already: its own parameters count."""
        self._here = self._same(self.before or {}, self._held_by(optimizer))
        self.moved = self.moved or not self._here

    def _closure_ends(self, optimizer: Any) -> None:
        """Its gradients are final, and those of the step where it ran at theta_t."""
        if self._here and not self._closed:
            self._closed = True
            self._note_gradients(optimizer)

    def _note_gradients(self, optimizer: Any) -> None:
        """The gradients of this optimizer are final: copy them, a scaler's scale taken out."""
        found = {n: p.grad for n, p in self._held_by(optimizer).items()}
        given = {n: local(g.detach()) for n, g in found.items() if g is not None}
        scale, which = scale_inside(optimizer), id(optimizer)
        try:
            spares = self._spares.get(which, not self._closed and self._leaves(optimizer))
            if self._lends and scale == 1.0 and spares and _dense(given):
                self._noted[which], self._norms[which] = given, norms(given.values())
                return
            kept = self._copied(_gradient_of(which), given)
        except Exception as error:
            self.missed = error
            raise
        if kept and scale != 1.0:
            torch._foreach_div_(list(kept.values()), scale)
        elif self._reuse and kept and _dense(given) and which not in self._spares:
            self._given[which] = given
        self._noted[which] = kept

    @property
    def copied(self) -> bool:
        """Whether gradients were, all of them."""
        return not self._norms

    def _leaves(self, optimizer: Any) -> bool:
        """Whether gradients stay what they are up to the end of a step, as far as can be known.

        Those of torch's own optimizers do, unless another one's turn or a hook comes after it.
        """
        alone = len(self._watched.optimizers) == len(optimizer._optimizer_step_post_hooks) == 1
        return alone and type(optimizer).__module__.startswith("torch.optim.")

    def gradient(self, named: Mapping[str, nn.Parameter]) -> Parameters | None:
        """The gradients that the step used, of the parameters; None if there are none."""
        for which, given in self._given.items():
            self._spares[which] = self._same(self._noted[which], given)
            if self._spares[which]:
                self._noted[which] = given
                self._memory.pop(_gradient_of(which), None)
        self._given = {}
        if self._norms:
            look = self.look(named, Parcel())
            self.finite, self.stepped = look.told().bool().tolist()
            self.moved = self.moved or not self.stayed(look)
        return None if self.moved or self.partial else self.lent(named)

    def lent(self, named: Mapping[str, nn.Parameter]) -> Parameters | None:
        """The gradients that were noted, whether the optimizer left them as they were or not."""
        return gradients(named, {n: g for of in self._noted.values() for n, g in of.items()})

    @property
    def lends(self) -> bool:
        """Whether all gradients are still the optimizer's own, so that `look` has to tell."""
        return bool(self._norms) and self._norms.keys() == self._noted.keys() and not self.moved

    def look(
        self, named: Mapping[str, nn.Parameter], parcel: Parcel, every: bool = False
    ) -> Looked:
        """Whether gradients stayed, theta_t is finite, its smallest tensor moved: one question.

        Args:
            named: the parameters.
            parcel: with which the answers go to the host.
            every: whether all tensors are looked at for whether they moved, not the smallest alone.
        """
        assert self.before is not None, "gradients are noted at theta_t only"
        pairs = [(p, local(named[n])) for n, p in self.before.items() if n in named]
        pairs = _few(pairs) if every else [min(pairs, key=lambda pair: pair[0].numel())]
        finite = norms(self.before.values()).isfinite().all()
        each = [(p != now).any().to(finite.device) for p, now in pairs if p.shape == now.shape]
        moved = torch.stack(each).any() if each else finite
        of = {w: (tuple(g), norms(g.values())) for w, g in self._noted.items() if w in self._norms}
        return Looked(
            told=parcel.add(torch.stack([finite, moved])),
            before={which: parcel.add(own) for which, own in self._norms.items()},
            after={which: (names, parcel.add(own)) for which, (names, own) in of.items()},
        )

    def stayed(self, look: Looked) -> bool:
        """Whether gradients did; where not, they are copied from the next step on."""
        changed = look.changed
        self._spares.update(dict.fromkeys(changed, False))
        return not changed

    def over(self) -> None:
        """Keep nothing of it; of a step that was evaluated nothing stays in the heap either."""
        trims = not self._reuse and large((self.before or {}).values())
        self.before, self.scale, self.missed, self._noted = None, 1.0, None, {}
        self._norms, self._given = {}, {}
        self.moved = self.finite = self.stepped = self.partial = False
        if trims:
            give_back()

    def forget(self) -> None:
        """Give all memory back."""
        self.over()
        self._memory = {}

    def _held_by(self, optimizer: Any) -> dict[str, Any]:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {n: p for n, p in self._watched.trainable().items() if id(p) in own}

    @staticmethod
    def _same(before: Parameters, now: Mapping[str, Tensor]) -> bool:
        return all(torch.equal(p, local(now[n])) for n, p in before.items() if n in now)

    def _copied(self, what: str, live: Mapping[str, Tensor]) -> Parameters:
        """Copies of these, dense."""
        now = {n: local(t.detach()) for n, t in live.items()}
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


def _few(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same tensors, small ones joined: calls would cost more."""
    alike = [(a.reshape(-1), b.reshape(-1)) for a, b in pairs if a.shape == b.shape]
    small = [pair for pair in alike if len(pair[0]) <= SMALL]
    joined = [(torch.cat([a for a, _ in small]), torch.cat([b for _, b in small]))] if small else []
    return joined + [pair for pair in alike if len(pair[0]) > SMALL]


def closure_of(args: Any, kwargs: Any) -> Any:
    """The closure that `step` of an optimizer was called with; None without."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def look_first(optimizers: Iterable[Any]) -> None:
    """Have hooks that change gradients for the length of a step called after those that look."""
    for hooks in (optimizer._optimizer_step_pre_hooks for optimizer in optimizers):
        for key, hook in tuple(hooks.items()):
            if getattr(getattr(hook, "__self__", None), "changes_gradients", False):
                hooks.move_to_end(key)


def _gradient_of(which: int) -> str:
    return f"gradient of {which}"


def _dense(given: Parameters) -> bool:
    return all(g.layout == torch.strided for g in given.values())


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
