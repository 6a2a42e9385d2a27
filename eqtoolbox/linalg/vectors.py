"""Vectors that are dicts of named tensors: inner products in float64, sums, random draws.

A float32 `norm` or `@` over 1e7 entries on a CPU is wrong by 1e-3; every reduction here widens
to float64 in pieces that stay in cache.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from eqtoolbox.world.reducing import agreed, axis_of, entries, piece_of, reduced

Vector = Mapping[str, Tensor]
P = ParamSpec("P")
T = TypeVar("T")

SMALL = 1 << 12  # entries up to which tensors are reduced as one: calls would cost more
DRAWN = 1 << 24  # entries up to which a piece of a random tensor is cut out of the whole one


def plain(function: Callable[P, T]) -> Callable[P, T]:
    """Arithmetic of our own, of which no mode around an evaluation need hear."""

    @wraps(function)
    def arithmetic(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return arithmetic


def pieces(x: Tensor) -> Sequence[Tensor]:
    """`x` cut along its last axis: what a cache holds on a CPU, few launches elsewhere."""
    most = 1 << 16 if x.device.type == "cpu" else 1 << 22
    return torch.split(x, most, dim=-1) if x.dim() and x.shape[-1] > most else (x,)


def wide(x: Tensor) -> Tensor:
    """`x` in float64 (float32 on MPS, which has no float64)."""
    return x.double() if x.device.type != "mps" else x.float()


@plain
def dot(a: Vector, b: Vector) -> float:
    """Inner product Σ a_i b_i over all tensors, accumulated in float64.

    Example:
        >>> dot({"w": torch.ones(3)}, {"w": torch.full((3,), 2.0)})
        6.0
    """
    small: dict[tuple[str, torch.device], list[str]] = {}
    sums: dict[str, list[Tensor]] = {}  # by the axis along which what is summed is cut
    for name, x in a.items():
        axis = axis_of(name, x)
        if x.numel() <= SMALL:
            small.setdefault((axis, x.device), []).append(name)
        else:
            sums.setdefault(axis, []).extend(_inner(x, b[name]))
    for (axis, _), names in small.items():
        x = torch.cat([a[n].reshape(-1) for n in names])
        y = x if a is b else torch.cat([b[n].reshape(-1) for n in names])
        sums.setdefault(axis, []).extend(_inner(x, y))
    return float(sum(reduced(axis, _total(parts)) for axis, parts in sums.items()))


def norm(a: Vector) -> float:
    """Euclidean norm over all tensors, free of float32 under- and overflow."""
    return math.sqrt(dot(a, a))


@plain
def scale(factor: float, a: Vector) -> dict[str, Tensor]:
    """factor · a."""
    return {name: factor * x for name, x in a.items()}


@plain
def add(a: Vector, b: Vector, factor: float = 1.0) -> dict[str, Tensor]:
    """a + factor · b."""
    return {name: torch.add(x, b[name], alpha=factor) for name, x in a.items()}


@plain
def add_to(a: dict[str, Tensor], b: Vector, factor: float = 1.0) -> dict[str, Tensor]:
    """a + factor · b, written over `a`."""
    for name, x in a.items():
        x.add_(b[name], alpha=factor)
    return a


@plain
def combine(vectors: Sequence[Vector], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Σ c_i v_i.

    Raises:
        ValueError: no vectors, or another number of coefficients.
    """
    if not vectors or len(vectors) != len(coefficients):
        raise ValueError(
            f"combine needs one coefficient for each of at least 1 vector, "
            f"got {len(vectors)} vectors and {len(coefficients)} coefficients"
        )
    total = scale(coefficients[0], vectors[0])
    for v, c in zip(vectors[1:], coefficients[1:], strict=True):
        add_to(total, v, c)
    return total


@plain
def zeros_like(a: Vector) -> dict[str, Tensor]:
    """The zero vector with the names, shapes, dtypes and devices of `a`."""
    return {name: x.new_zeros(x.shape) for name, x in a.items()}


def random_like(
    a: Vector,
    generator: torch.Generator,
    distribution: Literal["gaussian", "signs"] = "gaussian",
) -> dict[str, Tensor]:
    """Independent N(0, 1) entries, or fair signs ±1, shaped like `a`.

    Drawn on the generator's device, so one CPU generator gives the same vector on every device.
    Where `a` is a piece of a vector, so is what is drawn, of that which one process would draw; of
    a tensor of more than 2^24 entries every piece has a stream of its own.
    """

    def draw(shape: torch.Size, dtype: torch.dtype, stream: torch.Generator) -> Tensor:
        if distribution == "gaussian":
            return torch.randn(shape, generator=stream, dtype=dtype, device=stream.device)
        return 2 * torch.randint(2, shape, generator=stream, device=stream.device).to(dtype) - 1

    def drawn(name: str, x: Tensor) -> Tensor:
        piece = piece_of(name, x)
        if piece is None or piece.dim is None:
            return draw(x.shape, x.dtype, generator)
        if piece.whole.numel() > DRAWN:
            return draw(x.shape, x.dtype, _stream(generator, piece.start))
        whole = draw(piece.whole, x.dtype, generator)
        return whole.narrow(piece.dim, piece.start, piece.stop - piece.start).contiguous()

    return {name: drawn(name, x).to(x.device) for name, x in a.items()}


def _stream(generator: torch.Generator, start: int) -> torch.Generator:
    """The stream of the piece that begins there: another one for each, the same for its copies."""
    seed = torch.randint(2**32, (), generator=generator, device=generator.device)
    spread = (int(seed) + 2654435769 * start) % 2**32  # odd: no two starts have one seed
    return torch.Generator(generator.device).manual_seed(spread)


@dataclass(frozen=True)
class Space:
    """Where vectors live: names, shapes, dtypes and devices, held without storage.

    Example:
        >>> space = Space.of({"w": torch.ones(2, 3), "b": torch.ones(2)})
        >>> space.size, space.shapes["w"]
        (8, torch.Size([2, 3]))
    """

    like: Vector  # zeros without storage, one per name

    @classmethod
    def of(cls, example: Vector) -> "Space":
        """The space of `example`; half precision is raised to float32, where vectors must live.

        Raises:
            ValueError: no entries, or tensors that are not real floating point.
        """
        if not entries(example):
            raise ValueError("a vector needs at least one entry, got none; give {name: tensor}")
        for name, x in example.items():
            if not x.is_floating_point():
                raise ValueError(
                    f"{name!r} must be a real floating point tensor, got {x.dtype}; "
                    "leave integers out and pass complex tensors as torch.view_as_real"
                )
        return cls({name: _without_storage(x) for name, x in example.items()})

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape by name."""
        return {name: x.shape for name, x in self.like.items()}

    @cached_property
    def _kinds(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (x.shape, x.dtype) for name, x in self.like.items()}

    @property
    def size(self) -> int:
        """Number of entries n; of pieces that of the whole vector."""
        return entries(self.like)

    @property
    def eps(self) -> float:
        """Machine epsilon of the coarsest dtype."""
        return max(torch.finfo(x.dtype).eps for x in self.like.values())

    def check(self, v: Vector, what: str = "vector") -> None:
        """Raise ValueError unless `v` has the names, shapes and dtypes of this space."""
        if v.keys() != self.like.keys():
            odd = sorted(v.keys() ^ self.like.keys())
            raise ValueError(f"{what} must have the names of its space; {odd[:5]} differ")
        for name, x in self.like.items():
            if v[name].shape != x.shape or v[name].dtype != x.dtype:
                raise ValueError(
                    f"{what}[{name!r}] must be {x.dtype} of shape {tuple(x.shape)}, "
                    f"got {v[name].dtype} of shape {tuple(v[name].shape)}"
                )

    def admit(self, v: Vector, what: str = "vector") -> Vector:
        """`v` itself, half precision raised to the space's; otherwise as strict as `check`."""
        if {name: (x.shape, x.dtype) for name, x in v.items()} == self._kinds:
            return v
        half = (torch.float16, torch.bfloat16)
        if any(x.dtype in half for x in v.values()):
            v = {n: x.float() if x.dtype in half else x for n, x in v.items()}
        self.check(v, what)
        return v

    def select(self, names: Sequence[str]) -> "Space":
        """The subspace of the given names."""
        return Space({name: self.like[name] for name in names})


def _without_storage(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=x.device).expand(x.shape)


def _inner(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    if x is y:
        return (torch.dot(a, a) for a in map(wide, pieces(x.reshape(-1))))
    pairs = zip(pieces(x.reshape(-1)), pieces(y.reshape(-1)), strict=True)
    return (torch.dot(wide(a), wide(b)) for a, b in pairs)


def _total(scalars: list[Tensor]) -> float:
    if len(scalars) == 1:
        return scalars[0].item()
    # one transfer to the host, however many tensors there are
    return float(torch.stack([s.to(scalars[0].device) for s in scalars]).sum())


def fitted_to(like: Vector, v: Vector) -> dict[str, Tensor]:
    """`v` with the names and shapes of `like`; zero where it has none of that name and shape."""

    return {
        name: v[name].to(x) if name in v and v[name].shape == x.shape else x.new_zeros(x.shape)
        for name, x in like.items()
    }


def finite(v: Vector) -> bool:
    """Whether no entry is NaN or infinite, by one number that such an entry would spoil.

    Norms in the tensors' own precision, which overflow above 1e19 in float32: then all is looked
    at.
    """
    norms: dict[str, list[Tensor]] = {}
    for (name, x), length in zip(v.items(), torch._foreach_norm(list(v.values())), strict=True):
        norms.setdefault(axis_of(name, x), []).append(length)
    total = sum(reduced(axis, _on_host(parts)) for axis, parts in norms.items())
    return math.isfinite(total) or agreed(v, not not_finite(v))


def _on_host(scalars: list[Tensor]) -> float:
    if all(x.is_cpu for x in scalars):
        return float(sum(x.item() for x in scalars))
    return torch.stack([x.to(scalars[0].device) for x in scalars]).sum().item()  # one transfer


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or infinity; empty if there is none.

    A norm is finite where every entry is, in a single pass; others are looked at closely.
    """
    dense = {
        n: (t._values() if t.layout == torch.sparse_coo else t).detach()
        for n, t in tensors.items()
        if t.is_floating_point() or t.is_complex()
    }
    if not dense or bool(norms(dense.values()).isfinite().all()):
        return ""
    return next((n for n, t in dense.items() if not bool(t.isfinite().all())), "")


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of each in its own precision, on the device of the first: (tensors,) in float64."""
    if not (given := [t.detach() for t in tensors]):
        return torch.zeros(0, dtype=torch.float64)
    found = list(torch._foreach_norm(given))
    if len({n.dtype for n in found}) > 1 or len({n.device for n in found}) > 1:
        found = [wide(n).to(found[0].device) for n in found]
    return wide(torch.stack(found))
