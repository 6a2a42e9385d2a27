"""The transaction: parameters, statistics, gradients and optimizers moved together, or not at all.

Everything is checked and computed in float64 before the first write; an exception afterwards, of
the event too, puts everything back bit for bit.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.act.motion import Motion
from eqtoolbox.act.optimizer_state import moved_state, refuse_other_models
from eqtoolbox.act.write import Grad, Into, Write, all_or_none
from eqtoolbox.replay.statistics import running
from eqtoolbox.replay.unwrap import (
    optimizers_in,
    processes,
    refuse_engine,
    refuse_sharded,
    unwrapped,
)
from eqtoolbox.watch.acts import announce, check_between_steps
from eqtoolbox.weights.forms.stack import Parameters
from eqtoolbox.weights.parameter import ParameterSymmetry

ROUNDED = 16.0  # roundings of a row that its own type may add


def live(model: nn.Module) -> nn.Module:
    """The model that can be acted on: what a wrapper of one process holds.

    Raises:
        TypeError: its parameters are not whole on this process.
        ValueError: several processes train it.
    """
    refuse_engine(model)
    inner = unwrapped(model)
    refuse_sharded(inner)
    if processes() > 1:
        raise ValueError(
            f"{processes()} processes train together: an act of one would part it from the others; "
            "act on a whole copy before they start"
        )
    return inner


def carry_out(
    model: nn.Module,
    motion: Motion,
    optimizer: Any = None,
    *,
    act: str,
    said: str,
    params: Parameters | None = None,
    buffers: Parameters | None = None,
) -> None:
    """Move the live parameters of `model` by `motion`, with all that belongs to them.

    Args:
        model: of which the motion's parameters are.
        motion: T.
        optimizer: one, or several, whose state goes along; None: none does.
        act: its name in the event of an attached run.
        said: what it did, in a sentence.
        params: their new values, where T(theta) is known better than by the motion.
        buffers: new values of further buffers.

    Raises:
        TypeError: state or parameters that cannot be moved; says which.
        ValueError: values that their type cannot hold, or what does not belong to the model.
        RuntimeError: a monitor has caught a step that is being taken.
    """
    inner = live(model)
    check_between_steps(inner)
    own, statistics = dict(inner.named_parameters()), dict(inner.named_buffers())
    refuse_foreign(motion, own, statistics)
    optimizers = [] if optimizer is None else optimizers_in(optimizer)
    refuse_other_models(optimizers, own)
    at = {n: own[n].detach().double() for n in motion.names}
    kept = {n: b.detach().double() for n, b in running(statistics).items() if n in motion.buffers}
    try:
        moved = motion.moved({**at, **kept})
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"expected a symmetry of this model, got one of others: {error}"
        ) from error
    new = {n: t for n, t in moved.items() if n in own} if params is None else dict(params)
    also = {n: t for n, t in moved.items() if n in kept} | dict(buffers or {})
    writes = [_into(n, own[n], t) for n, t in new.items()]
    writes += [_into(n, statistics[n], t) for n, t in also.items()]
    before = {w.name: w.old for w in writes if w.name in new}
    others = [*_moved_gradients(motion, own, at)]
    for one in optimizers:
        others += moved_state(one, motion, own, at)
    _refuse_overflow("a gradient or state of the optimizer", others)
    after = {n: own[n].detach() for n in new}
    all_or_none([*writes, *others], lambda: announce(inner, act, said, before, after))


class _Named(Into):
    """A parameter or buffer with its name."""

    def __init__(self, name: str, target: Tensor, new: Tensor) -> None:
        super().__init__(target, new)
        self.name = name


def _into(name: str, target: Tensor, new: Tensor) -> _Named:
    """The write, if the target's type can hold the value.

    Raises:
        ValueError: it overflows, or rows of it vanish.
    """
    write = _Named(name, target, new)
    _refuse_overflow(name, [write])
    lost, exact = write.new.double() - new, new
    bound = ROUNDED * torch.finfo(target.dtype).eps
    for axis in range(min(new.dim(), 2)):
        others = [a for a in range(new.dim()) if a != axis]
        sizes = [x.square().sum(others).sqrt() if others else x.abs() for x in (lost, exact)]
        if bool((sizes[0] > bound * sizes[1]).any()):
            raise ValueError(
                f"{name} would have rows of {float(sizes[1][sizes[1] > 0].min()):.0e}, which "
                f"{target.dtype} cannot hold: move less far, or in float64"
            )
    return write


def _refuse_overflow(name: str, writes: Iterable[Write]) -> None:
    """What is not finite already may stay so, as gradients that a GradScaler has yet to see."""
    tensors = [w for w in writes if isinstance(w, Into)]
    whole = all(bool(w.old.isfinite().all()) for w in tensors)
    for write in tensors:
        if write.overflows or (whole and write.spoils):
            raise ValueError(
                f"{name} would not be finite in {write.target.dtype}: move less far, or in float64"
            )


def _moved_gradients(
    motion: Motion, params: Mapping[str, nn.Parameter], at: Parameters
) -> Iterator[Write]:
    """`.grad` along, whatever part of a sum or multiple of a gradient it is."""
    given = {n: g for n in motion.names if (g := params[n].grad) is not None}
    for name, grad in given.items():
        if grad.layout != torch.strided or grad.requires_grad:
            kind = "a graph" if grad.requires_grad else "sparse rows"
            raise TypeError(f"{name}.grad has {kind}, which cannot go along: set it to None first")
    if not given:
        return
    whole = {n: given[n].double() if n in given else torch.zeros_like(at[n]) for n in motion.names}
    for name, new in motion.cotangent(at, whole).items():
        source, old = motion.places.get(name, name), given.get(name)
        if source not in given:
            if old is not None and name in motion.places:
                yield Grad(params[name], None)
        elif old is None:
            yield Grad(params[name], torch.empty_like(given[source]).copy_(new))
        else:
            yield Into(old, new)


def refuse_foreign(
    motion: Motion | ParameterSymmetry, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """What moves must be there, and of a kind that can be written in place.

    Raises:
        ValueError: the model has no such parameter or buffer.
        TypeError: it has no numbers, or is not real.
    """
    missing = [n for n in motion.names if n not in params]
    missing += [n for n in motion.buffers if n not in buffers]
    if missing:
        raise ValueError(
            f"expected a symmetry of this model, got one that moves {_some(missing)}, which it does"
            " not have: discover(model, batch) anew"
        )
    for name in motion.names:
        p = params[name]
        if p.is_meta or not p.is_floating_point() or p.is_inference():
            kind = (
                "on meta"
                if p.is_meta
                else "made in inference mode"
                if p.is_inference()
                else p.dtype
            )
            raise TypeError(f"expected parameters that can be written, got {name}, which is {kind}")
        if not bool(p.isfinite().all()):
            raise ValueError(f"{name} is not finite: there is nothing to move")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
