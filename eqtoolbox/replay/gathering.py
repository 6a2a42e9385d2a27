"""Gathering: weights of which processes hold pieces, whole for as long as an operation uses them.

What a module reads is gathered with its block in the moment of reading, and only the last block is
kept: in a graph a saved tensor that views a gathered weight stands as its name, and is gathered
again when the backward comes to it. Autograd gives it the place in the graph that it had, so that
derivatives of all orders pass by the first gathering, which knows its adjoint.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from eqtoolbox.replay.casts import Cast, casting
from eqtoolbox.replay.gradients import required
from eqtoolbox.replay.graph import ungraded
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.replay.thread.tables import Later, settled_parameters
from eqtoolbox.world.adjoints import whole
from eqtoolbox.world.bundle import Bundle
from eqtoolbox.world.layout import local
from eqtoolbox.world.mesh import Mesh

Pieces = Mapping[str, Tensor]


class Gathering:
    """The weights of one model, block by block.

    Args:
        model: that has them.
        world: of the processes that hold them.
        mixed: in the types that training computes with; else in those that they have.

    Attributes:
        peak: entries of gathered weights that were alive at once, at most.
        gathered: how many blocks were, so far.
    """

    def __init__(self, model: nn.Module, world: Mesh, mixed: bool = True) -> None:
        self.peak = self.gathered = 0
        self._model, self._world = model, world
        self._bundles = [
            Bundle(world=world, names=b.names, dtype=b.dtype if mixed else None, device=b.device)
            for b in world.blocks
        ]
        self._places = {n: (b, k) for b in self._bundles for k, n in enumerate(b.names)}
        self._casts = {
            id(module): Cast(
                device=b.device,
                inputs=b.dtype if mixed and b.casts else None,
                output=b.output if mixed else None,
            )
            for b in world.blocks
            for module in b.modules
        }
        self._known: dict[int, _Known] = {}  # by storage: a weak reference keeps its number its own
        self._last: _Last | None = None

    @property
    def alive(self) -> int:
        """Entries of gathered weights whose memory is in use."""
        self._forget()
        return sum(one.entries for one in self._known.values())

    def unmixed(self) -> "Gathering":
        """The same in the types that the parameters have."""
        return Gathering(self._model, self._world, mixed=False)

    @contextmanager
    def shown(
        self, params: Mapping[str, Tensor], cast: Callable[[Tensor], Tensor]
    ) -> Iterator[dict[str, Any]]:
        """Scope of an evaluation, or of a backward through one.

        Gives all parameters as the model is to find them: made when they are read.

        Args:
            params: pieces of those that are given; of the others it is the live ones'.
            cast: to the type of the evaluation.
        """
        with unobserved():
            live = settled_parameters(self._model)
            held = {
                n: required(params[n] if n in params else cast(local(live[n]).detach()), live[n])
                for n in self._places
                if not isinstance(params.get(n), Later)
            }
        later = {n: _Weight(self, held, n) for n in held}
        saved = torch.autograd.graph.saved_tensors_hooks(self._stored, self._restored)
        try:
            with saved, casting(self._casts), ungraded(held.values()):
                yield {**params, **later}
        finally:
            self._last = None
            self._forget()

    def read(self, held: Pieces, name: str, graded: bool) -> Tensor:
        """A weight, gathered with its block unless that was the last.

        Args:
            held: the pieces of all.
            graded: with its place in a graph.
        """
        bundle, k = self._places[name]
        last = self._last
        if (
            last is None
            or last.held is not held
            or last.bundle is not bundle
            or last.graded < graded
        ):
            last = self._last = None  # none of the block before is kept while another comes
            with unobserved():
                found = whole(bundle, [held[n] for n in bundle.names])
                last = self._last = _Last(held, bundle, graded, found)
                self._note(last)
        return last.found[k]

    def _note(self, last: "_Last") -> None:
        """Know these weights by their memory, and count what is alive."""
        self.gathered += 1
        for name, t in zip(last.bundle.names, last.found, strict=True):
            if name in self._world.cut:
                storage = t.untyped_storage()
                known = _Known(_weak(storage), last.held, name, t.dtype, t.numel())
                self._known[storage._cdata] = known
        self.peak = max(self.peak, self.alive)

    def _forget(self) -> None:
        """Know of no weight whose memory is free."""
        self._known = {key: one for key, one in self._known.items() if one.alive}

    def _stored(self, t: Tensor) -> Any:
        """What a graph keeps of a tensor."""
        known = None
        with suppress(RuntimeError, NotImplementedError), unobserved():  # some have no memory
            known = self._known.get(t.untyped_storage()._cdata)
        if known is None or t._version or t.dtype != known.dtype:
            return t
        return _View(known.held, known.name, t.shape, t.stride(), int(t.storage_offset()))

    def _restored(self, kept: Any) -> Tensor:
        if not isinstance(kept, _View):
            return kept  # type: ignore[no-any-return]
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False), unobserved():
            t = self.read(kept.held, kept.name, graded=False).detach()
            return t.as_strided(kept.shape, kept.stride, kept.offset)


_weak: Any = StorageWeakRef  # while it is there, no other storage gets the number of this one


class _Weight(Later):
    """A weight that is gathered when it is read."""

    def __init__(self, gathering: Gathering, held: Pieces, name: str) -> None:
        self._gathering, self._held, self._name = gathering, held, name

    def made(self) -> Tensor:
        return self._gathering.read(self._held, self._name, torch.is_grad_enabled())


@dataclass(frozen=True)
class _Last:
    """The block that was gathered last."""

    held: Pieces
    bundle: Bundle
    graded: bool
    found: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Known:
    """A gathered weight, as long as its memory is there."""

    storage: Any  # a weak reference
    held: Pieces
    name: str
    dtype: torch.dtype
    entries: int

    @property
    def alive(self) -> bool:
        return not self.storage.expired()


@dataclass(frozen=True)
class _View:
    """What a graph keeps of a tensor that is a view of a gathered weight."""

    held: Pieces
    name: str
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
