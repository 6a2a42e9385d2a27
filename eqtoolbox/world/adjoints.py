"""Exchanges between ranks as linear maps that know their adjoints: exact derivatives of any order.

Let r run over ranks and x_r be what each holds. The sum S: (x_r) -> (s, ..., s), s = sum_r x_r,
and the copy C: x -> (x, ..., x) of what all ranks hold alike are adjoint to each other, as seen
from one number that all ranks work out together. The gradient of such a number passes C by a sum
and S by a copy, the derivative of that gradient the other way, and so on: no order is special. Of
the same kind are G, which makes whole tensors of pieces, and its adjoint (`Bundle`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqtoolbox.world.world import World

if TYPE_CHECKING:
    from eqtoolbox.world.bundle import Bundle, Kind


class _Copied(torch.autograd.Function):
    """C: what all ranks hold alike enters what each does by itself."""

    @staticmethod
    def forward(world: World, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.world = inputs[0]

    @staticmethod
    def backward(ctx: Any, *rows: Tensor) -> Any:
        return None, *_Summed.apply(ctx.world, *rows)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor) -> Any:
        return tuple(t.view_as(t) for t in tangents)


class _Summed(torch.autograd.Function):
    """S: what each rank found becomes what all of them hold."""

    @staticmethod
    def forward(world: World, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(world.summed(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.world = inputs[0]

    @staticmethod
    def backward(ctx: Any, *rows: Tensor) -> Any:
        return None, *_Copied.apply(ctx.world, *rows)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor) -> Any:
        return tuple(ctx.world.summed(tangents))


class _Gathered(torch.autograd.Function):
    """G: pieces that ranks hold of tensors become the whole ones, on each of them."""

    @staticmethod
    def forward(bundle: "Bundle", *held: Tensor) -> tuple[Tensor, ...]:
        return tuple(bundle.gathered(held))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bundle, *held = inputs
        ctx.kinds = [(t.dtype, t.device) for t in held]

    @staticmethod
    def backward(ctx: Any, *rows: Tensor) -> Any:
        return None, *_Scattered.apply(ctx.bundle, ctx.kinds, *rows)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor) -> Any:
        return tuple(ctx.bundle.gathered(tangents))


class _Scattered(torch.autograd.Function):
    """Gᵀ: what each rank found of whole tensors, summed, becomes pieces that they hold."""

    @staticmethod
    def forward(bundle: "Bundle", kinds: "Sequence[Kind]", *whole: Tensor) -> tuple[Tensor, ...]:
        return tuple(bundle.scattered(whole, kinds))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bundle, ctx.kinds, *_ = inputs

    @staticmethod
    def backward(ctx: Any, *rows: Tensor) -> Any:
        return None, None, *_Gathered.apply(ctx.bundle, *rows)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor) -> Any:
        return tuple(ctx.bundle.scattered(tangents, ctx.kinds))


def copied(world: World, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that all ranks hold alike, for what each of them does by itself.

    A gradient with respect to them is the sum over the ranks, in one exchange.
    """
    found = _Copied.apply(world, *params.values())  # type: ignore[no-untyped-call]
    return dict(zip(params, found, strict=True))


def summed(world: World, value: Tensor) -> Tensor:
    """The sum over the ranks of what each found."""
    return _Summed.apply(world, value)[0]  # type: ignore[no-any-return, no-untyped-call]


def pooled(world: World, part: Tensor) -> Tensor:
    """The sum over the ranks, for what each of them goes on to do with it by itself."""
    found = _Copied.apply(world, summed(world, part))  # type: ignore[no-untyped-call]
    return found[0]  # type: ignore[no-any-return]


def mean(world: World, value: Tensor) -> Tensor:
    """The mean over the ranks of what each found, as training weights them: by 1 / size."""
    return summed(world, value) / world.size


def whole(bundle: "Bundle", held: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The whole tensors of a bundle, of the pieces that this rank holds.

    A gradient with respect to a piece is that of the sum over the ranks' own shares, in one
    exchange.
    """
    return _Gathered.apply(bundle, *held)  # type: ignore[no-any-return, no-untyped-call]
