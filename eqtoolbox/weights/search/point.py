"""The point at which symmetries are looked for: parameters in general position, made when read.

A symmetry holds everywhere, an accident of initialisation (all gains one, all biases zero) only
there; so tensors are moved a little, but for large ones without a pattern. Of large ones
there is one float64 copy, which evaluations write over: it is filled anew for each.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from eqtoolbox.replay.widened import Widened

_KEPT_MODEL = 2**22  # entries up to which a whole model is kept
_KEPT_TENSOR = 2**14  # entries up to which a tensor of a larger model is kept
_LARGE = 2**20  # entries of a tensor whose memory goes back as soon as a backward has read it last
_FAR = (1000, 2000, 3000)  # seeds
_SMALL = 2**16  # entries up to which a tensor is moved whatever it holds


class Point(Mapping[str, Tensor]):
    """theta + noise of 0.1 of each tensor's root mean square and at least 0.01.

    Args:
        source: parameters, not copied.
        dtype: of what is read; None: the parameters' own.
        noise: how many times as much; 0: theta as it is given.
        statistics: running ones that the function takes beside parameters.

    Example:
        >>> point = Point({"gain": torch.ones(3)}, torch.float64)
        >>> point["gain"].dtype, bool((point["gain"] == point["gain"]).all())
        (torch.float64, True)
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        seed: int = 0,
        noise: float = 1.0,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.statistics = {n: b.to(dtype or b.dtype) for n, b in (statistics or {}).items()}
        self._source = {name: p.detach() for name, p in source.items()}
        self._dtype = dtype
        self._noise = noise
        self._seeds = {name: seed + k for k, name in enumerate(source)}
        total = sum(p.numel() for p in source.values())
        self.whole = total <= _KEPT_MODEL  # small enough to be kept
        self._limit = total if self.whole else _KEPT_TENSOR
        self._kept: dict[str, Tensor] = {}
        self._written: dict[str, Tensor] = {}
        self._filled_at: dict[str, int] = {}  # version of what is written

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept and self._filled_at[name] == self._kept[name]._version:
            return self._kept[name]  # which nobody has written to, as a maximal norm does
        made = self._filled(self._empty(name), name)
        if made.numel() <= self._limit:
            self._kept[name], self._filled_at[name] = made, made._version
        return made

    def written(self, name: str) -> Tensor | None:
        """A large tensor to be written over, in memory that the next call fills anew; else None."""
        if self._source[name].numel() <= self._limit:
            return None
        if name not in self._written:
            self._written[name] = self._empty(name)
        memory = self._written[name]
        if self._filled_at.get(name) != memory._version:  # it was written over since
            self._filled_at[name] = self._filled(memory, name)._version
        return memory

    def read(self, name: str) -> Tensor:
        """A tensor to be read before anything is written again."""
        memory = self.written(name)
        return self[name] if memory is None else memory

    def seen(self, name: str) -> Tensor:
        """A tensor to be read, as it is given where that is where the point is."""
        p = self._source[name]
        return self[name] if name in self._kept or self._shaken(p) else p

    def release(self, name: str) -> None:
        """Give back the memory of a large tensor that nobody reads until it is written again."""
        if self._source[name].numel() >= _LARGE:
            self._written.pop(name, None)
            self._filled_at.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def scope(self) -> AbstractContextManager[object]:
        """In which functions of this point are evaluated: in float64 throughout, if it is."""
        return Widened() if self._dtype == torch.float64 else nullcontext()

    def others(self) -> "Iterator[Point]":
        """Where the parameters are given, and far from there."""
        for seed, noise in ((0, 0.0), *((far, 10.0) for far in _FAR)):
            yield Point(self._source, self._dtype, seed, noise, self.statistics)

    @property
    def large(self) -> bool:
        """Whether there is one float64 copy alone, whose loss order 0 is decisive of."""
        return not self.whole and self._dtype == torch.float64

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self._source.items()}

    @property
    def lasting(self) -> frozenset[str]:
        """Names of the tensors that are written over; of the others nobody's copy is ours."""
        return frozenset(n for n, p in self._source.items() if p.numel() > self._limit)

    def _empty(self, name: str) -> Tensor:
        return torch.empty_like(self._source[name], dtype=self._dtype)

    def _shaken(self, p: Tensor) -> bool:
        return self._noise > 0 and p.numel() > 0 and (p.numel() <= _SMALL or _repetitive(p))

    def _filled(self, moved: Tensor, name: str) -> Tensor:
        p = self._source[name]
        moved.copy_(p)
        if self._shaken(p):
            generator = beside(p, torch.Generator().manual_seed(self._seeds[name]))
            # in float64, so that it is the same number within a scope and outside
            size = float(torch.linalg.vector_norm(p, dtype=torch.float64))
            amount = self._noise * float(f"{0.1 * size / p.numel() ** 0.5 + 0.01:.9g}")
            drawn = torch.randn(p.shape, generator=generator, device=generator.device)
            moved += amount * drawn.to(moved)
        return moved


_DRAWN_ON = ("cuda", "xpu", "mps")  # devices with generators of their own


def beside(tensor: Tensor, generator: torch.Generator) -> torch.Generator:
    """The generator where the tensor is: itself, or one on the tensor's device that it seeds.

    Example:
        >>> one = torch.Generator().manual_seed(3)
        >>> beside(torch.ones(2), one) is one
        True
    """
    if tensor.device.type not in _DRAWN_ON or tensor.device.type == generator.device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(tensor.device).manual_seed(seed)


def _repetitive(p: Tensor) -> bool:
    """Whether entries repeat: zeros, ones, an identity."""
    some = p.reshape(-1)[:256]
    return len(set(some.tolist())) < some.numel()
