"""The anchor: weight decay that pulls towards a fixed random point instead of towards zero."""

import functools
import hashlib
import inspect
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, optim

from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Positive, Seed
from eqtoolbox.replay.eager import eager
from eqtoolbox.replay.unwrap import optimizers_in
from eqtoolbox.watch.aloud import tell
from eqtoolbox.watch.monitor import Monitor, monitors_of
from eqtoolbox.watch.step import closure_of

BESIDE = ["AdamW", "Muon"]  # decay theta itself, the others its gradient unless a group says so
WITHIN = ["SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD"]
Drawn = list[tuple[Tensor, Tensor]]  # parameters, each with its theta_0


class Anchor:
    """Decay towards theta_0 while it is attached; made by `eqtoolbox.act.anchor`."""

    changes_gradients = True  # its hook before a step comes after those that look at gradients

    def __init__(self, optimizer: optim.Optimizer, scale: float, seed: int) -> None:
        self.optimizer, self.scale, self.seed = optimizer, scale, seed
        self._kind = _kind(optimizer)
        _refuse(optimizer)
        self._points: dict[int, Tensor] = {}  # theta_0 by the parameter's place in the optimizer
        self._given: Drawn = []  # parameters whose gradient stands aside for the step, and that
        self._told: weakref.WeakSet[Monitor] = weakref.WeakSet()
        starts = optimizer.register_step_pre_hook(self._step_starts)
        ends = optimizer.register_step_post_hook(self._step_ends)
        optimizer._optimizer_step_post_hooks.move_to_end(ends.id, last=False)  # type: ignore[attr-defined]
        self._handles = {"starts": starts, "ends": ends}
        self._tell()

    def __repr__(self) -> str:
        decays = sorted({f"{float(g['weight_decay']):g}" for g in self.optimizer.param_groups})
        state = "attached" if self._handles else "removed"
        return (
            f"Anchor({self._kind}, weight_decay {', '.join(decays)}, towards N(0, {self.scale:g}^2)"
            f" of seed {self.seed}; {state})"
        )

    _repr_html_ = notebook.text

    def remove(self) -> None:
        """Take the hooks off: decay pulls towards zero again. Calling it again does nothing."""
        self._restore()
        for handle in self._handles.values():
            handle.remove()
        if self._handles:
            self._handles = {}
            for monitor in self._told:
                tell(monitor, "anchor", "removed: weight decay pulls towards zero again")

    def __enter__(self) -> "Anchor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: theta_0 itself, which another machine may draw differently."""
        return {"scale": self.scale, "seed": self.seed, "points": dict(self._points)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError, TypeError, ValueError: it is no such state, or of other parameters; nothing
                of it is taken.
        """
        fitted("state", state, Mapping[str, Any])
        scale = fitted("state['scale']", state["scale"], Positive)
        seed = fitted("state['seed']", state["seed"], Seed)
        points = fitted("state['points']", state["points"], Mapping[int, Tensor])
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for place, point in points.items():
            if place >= len(params) or point.shape != params[place].shape:
                raise ValueError(
                    f"state has theta_0 of shape {tuple(point.shape)} for parameter {place} of the "
                    "optimizer, which is another one here; load what was saved with this model"
                )
        self.scale, self.seed, self._points = scale, seed, dict(points)

    # -- the step -------------------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def _step_starts(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Where the decay is added to the gradient, -gamma theta_0 is, too, for this step."""
        self._restore()
        closure = closure_of(args, kwargs)
        if not callable(closure):
            self._pull_gradients()
            return None

        @functools.wraps(closure, updated=())
        def pulled(*given: Any, **named: Any) -> Any:
            self._restore()
            loss = closure(*given, **named)
            self._pull_gradients()
            return loss

        if len(args) > 1:
            return (args[0], pulled, *args[2:]), kwargs
        return args, {**kwargs, "closure": pulled}

    @torch.no_grad()
    def _pull_gradients(self) -> None:
        scale = getattr(self.optimizer, "grad_scale", None)  # which a fused optimizer divides by
        for group, drawn in self._drawn(within=True):
            rate = group["weight_decay"] * (1 if group.get("maximize") else -1)
            rate = rate if scale is None else rate * scale
            for p, point in drawn:
                given = p.grad
                assert given is not None, "these have gradients"
                self._given.append((p, given))
                p.grad = given.detach() + rate * point

    def _restore(self) -> None:
        """Every gradient is again the tensor that it was."""
        given, self._given = self._given, []
        for p, gradient in given:
            p.grad = gradient

    @eager
    @torch.no_grad()
    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        if scale is not None:  # as the fused optimizer leaves the one that it is given
            for _, gradient in self._given:
                gradient.div_(scale)
        self._restore()
        skipped = getattr(optimizer, "found_inf", None)  # inside a fused optimizer: 1 or 0
        for group, drawn in self._drawn(within=False):
            rate = group["lr"] * group["weight_decay"]
            rate = rate if skipped is None else rate * (1 - skipped)
            for p, point in drawn:
                p.add_(rate * point)
        self._tell()
        if self._handles:
            optimizer._optimizer_step_pre_hooks.move_to_end(self._handles["starts"].id)

    def _drawn(self, within: bool) -> Iterator[tuple[dict[str, Any], Drawn]]:
        """Groups that decay, within the gradient or beside it, and what of them steps."""
        first = 0
        for group in self.optimizer.param_groups:
            places = enumerate(group["params"], first)
            first += len(group["params"])
            beside = group.get("decoupled_weight_decay", self._kind in BESIDE)
            if group["weight_decay"] and bool(beside) != within:
                yield group, [(p, self._point(i, p)) for i, p in places if p.grad is not None]

    def _point(self, place: int, p: Tensor) -> Tensor:
        """theta_0 of one parameter: the same whenever it is asked for, in its dtype."""
        known = self._points.get(place)
        if known is None or known.shape != p.shape:
            digest = hashlib.sha256(f"{self.seed}/{place}".encode()).digest()
            own = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            dtype = torch.complex128 if p.is_complex() else torch.float64
            known = self.scale * torch.randn(p.shape, generator=own, dtype=dtype)
        self._points[place] = known = known.to(p.device, p.dtype)
        return known

    def _tell(self) -> None:
        """Say once to every monitor what its step is made of."""
        for monitor in monitors_of(self.optimizer):
            if monitor not in self._told:
                self._told.add(monitor)
                tell(
                    monitor,
                    "anchor",
                    f"{self}: the pull is part of every step, in the budget of the optimizer's; "
                    "closed forms with weight decay assume that it pulls towards zero",
                )


def _kind(optimizer: optim.Optimizer) -> str:
    """The optimizer of torch whose step this one takes."""
    step = inspect.unwrap(type(optimizer).step)
    known = [name for name in (*BESIDE, *WITHIN) if hasattr(optim, name)]
    same = [name for name in known if inspect.unwrap(getattr(optim, name).step) is step]
    if not same:
        raise ValueError(
            f"anchor expected an optimizer whose weight decay is known, {', '.join(known)}, got "
            f"{type(optimizer).__name__}, whose step is its own"
        )
    return next((n for n in same if isinstance(optimizer, getattr(optim, n))), same[0])


def _refuse(optimizer: optim.Optimizer) -> None:
    """What cannot be anchored."""
    groups = optimizer.param_groups
    if not any(group["weight_decay"] for group in groups):
        raise ValueError(
            "anchor expected a parameter group with weight_decay > 0, got none: it pulls as hard "
            "as the decay; give the optimizer a weight_decay"
        )
    if any(hasattr(p, "device_mesh") for group in groups for p in group["params"]):
        raise ValueError(
            "anchor expected whole parameters, got shards of them (DTensor), of which no part of "
            "theta_0 is drawn; anchor where parameters are whole, as under DistributedDataParallel"
        )
    owners = (getattr(h, "__self__", None) for h in optimizer._optimizer_step_pre_hooks.values())
    if any(isinstance(owner, Anchor) for owner in owners):
        raise ValueError("this optimizer has an anchor already; remove() that one first")


@checked
def anchor(optimizer: Any, scale: Positive = 0.1, seed: Seed = 0) -> Anchor:
    """Have weight decay pull towards a fixed random point: no collapse by a decay too large.

        theta <- theta - lr (g + gamma (theta - theta_0)),   theta_0 ~ N(0, scale^2), drawn once

    theta_0 breaks every symmetry whose fixed point attracts: units that decay would switch off, or
    make equal, have different places to go. It cures a decay that is *too large*. Where the decay
    can be chosen, a smaller one is as good or better: on digits 0.05 gives .61-.80 without and
    .93 with the anchor, and 0.003 without gives .95-.96 (`benchmarks/anchor.py`).

    Exact, for the gamma and lr of each parameter group at each step: SGD (momentum, Nesterov),
    Adam, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax and ASGD, whose gradient is
    g + gamma theta, are given g - gamma theta_0 for the length of the step; `.grad` is the same
    tensor with the same numbers afterwards. After a step of AdamW, Muon, or another with
    `decoupled_weight_decay`, lr gamma theta_0 is added. What does not step (no gradient, weight
    decay 0, a step skipped by a GradScaler) is not pulled. A monitor sees the loss's own gradient
    and the whole update, in either order of attaching.

    Cost: theta_0 is as large as what decays; so is a second gradient, while a step of the first
    kind is taken.

    Args:
        optimizer: of torch, or a wrapper that holds one as `.optimizer`.
        scale: standard deviation of every number of theta_0; an initial weight is 0.05 to 0.2.
        seed: of theta_0, drawn parameter by parameter, in float64 on the host, whatever the dtype.

    Returns:
        What takes it off again by `remove()`, or at the end of a `with`; `state_dict()` keeps
        theta_0 for a resumed run.

    Raises:
        ValueError: an optimizer whose rule is not known, no weight decay, sharded parameters, or
            an anchor already; nothing is changed.

    Reference: Ziyin et al. 2024, Remove symmetries to control model expressivity (syre),
        arXiv 2408.15495.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> sgd = torch.optim.SGD([w], lr=1.0, weight_decay=1.0)
        >>> w.grad = torch.zeros(3)
        >>> with anchor(sgd, scale=0.1) as held:
        ...     sgd.step()  # lr gamma = 1: all the way to theta_0
        >>> bool(0 < w.abs().max() < 0.5), w.grad.tolist()
        (True, [0.0, 0.0, 0.0])
    """
    optimizers = optimizers_in(optimizer)
    if len(optimizers) > 1:
        raise ValueError(f"anchor expected one optimizer, got {len(optimizers)}; call it for each")
    return Anchor(optimizers[0], scale, seed)
