"""How layers with weights commute with a group, and what each weight owes."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.enforce.bearing import Bearing, permuting
from eqtoolbox.enforce.follow import Follow, sure
from eqtoolbox.enforce.representation import Representation, Unfit, still
from eqtoolbox.enforce.tie_pointwise import held, unsigned
from eqtoolbox.enforce.tie_windows import channels, each, lattice
from eqtoolbox.enforce.torch_calls import TorchCall
from eqtoolbox.enforce.unifying import Block, Joined, moves, seen

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)


def _linear(f: Follow, c: TorchCall) -> Bearing:
    weight, bias = c.arg(1, "weight"), c.arg(2, "bias")
    x = held(f, c)
    left, last = x.split(len(x.shape) - 1)
    given = last.factors
    out = f.out(weight, weight.shape[0], moved=False, given=given)
    f.tie(weight, out, given, dual=(1,))
    f.tie(bias, out)
    f.layer(weight, given, out)
    return left + Bearing.of(f.order, (out, (weight.shape[0],)))


def _arguments(c: TorchCall, names: Sequence[str]) -> dict[str, Any]:
    given = dict(zip(names, c.args, strict=False)) | dict(c.kwargs)
    usual = {
        "bias": None,
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
        "output_padding": 0,
    }
    return usual | given


def _convolution(f: Follow, c: TorchCall) -> Bearing:
    a = _arguments(c, _CONVOLUTION)
    weight = a["weight"]
    d = weight.dim() - 2
    given, grid = channels(f, c, d)
    size, kernel = tuple(weight.shape[2:]), still(f.order, prod(weight.shape[2:]))
    stride, dilation = each(a["stride"], d), each(a["dilation"], d)
    window = tuple(w * (k - 1) + 1 for w, k in zip(dilation, size, strict=True))
    padding = _padding(a["padding"], window, d)
    made = grid
    if prod(size) > 1 or grid.shape != tuple(c.result.shape[2:]):
        turned = lattice(grid)
        turned.demand_alike("kernel", size)
        turned.demand_centred(grid.shape, window, stride, padding)
        kernel = turned.on(size)
        made = Bearing.of(f.order, (turned.on(c.result.shape[2:]), tuple(c.result.shape[2:])))
        if a["padding"] == "same" and any(
            (w - 1) % 2 and back for w, back in zip(window, turned.reversed, strict=True)
        ):
            raise Unfit(f"padding='same' of an even window {window} is longer on one side")
    return _weighted(f, weight, a, given.factors, kernel, made)


def _padding(given: Any, window: Sequence[int], d: int) -> tuple[int, ...]:
    if given == "same":
        return tuple((w - 1) // 2 for w in window)
    return (0,) * d if given == "valid" else each(given, d)


def _weighted(
    f: Follow,
    weight: Tensor,
    a: dict[str, Any],
    given: Block,
    kernel: Representation,
    grid: Bearing,
) -> Bearing:
    """Tie a convolution, dense or in groups."""
    size, groups = weight.shape[0], a["groups"]
    moved = not kernel.rests
    if groups == 1:
        out = f.out(weight, size, moved=moved, given=given)
        f.tie(weight, out, given, kernel, dual=(1,))
    else:
        out = _grouped(f, weight, groups, given, kernel)
    f.tie(a["bias"], out)
    f.layer(weight, given, out)
    return Bearing.of(f.order, (out, (size,))) + grid


def _grouped(f: Follow, weight: Tensor, groups: int, given: Block, kernel: Representation) -> Block:
    """Depthwise outputs go with their channel, those of wider groups stay inside."""
    inside, made = weight.shape[1], weight.shape[0] // groups
    if inside == 1:
        whole = made % f.order == 0 and not moves(given)
        out: Block = (
            f.out(weight, weight.shape[0], moved=not kernel.rests, given=given)
            if whole
            else f.outs.setdefault(id(weight), Joined((given, still(f.order, made))))
        )
    else:
        out = f.out(weight, weight.shape[0], moved=not kernel.rests, given=given)
    if f.final:
        f.tie(weight, _own_channels(seen(out), seen(given), groups), kernel)
    return out


def _own_channels(out: Block, given: Block, groups: int) -> Representation:
    """How pairs (output, input inside of its group) move."""
    assert isinstance(out, Representation)
    assert isinstance(given, Representation)
    if out.matrix is not None or given.matrix is not None:
        raise Unfit("groups of channels that the group mixes")
    inside, made = given.size // groups, out.size // groups
    of_group = torch.arange(out.size) // made
    mine = of_group[:, None] * inside + torch.arange(inside)  # (out, inside)
    taken = given.source[:, mine]  # (|G|, out, inside)
    home = of_group[out.source][:, :, None]
    if not bool((taken // inside == home).all()):
        raise Unfit(
            f"{groups} groups of {inside} channels do not hold whole fields of {out.order}; make "
            "the channels of a group a multiple of the elements, or groups as many as channels"
        )
    source = out.source[:, :, None] * inside + taken % inside
    sign = out.sign[:, :, None] * given.sign[:, mine]
    return Representation(source=source.flatten(1), sign=sign.flatten(1))


def _transposed(f: Follow, c: TorchCall) -> Bearing:
    a = _arguments(c, _TRANSPOSED)
    weight = a["weight"]
    d = weight.dim() - 2
    if a["groups"] != 1:
        raise Unfit("a transposed convolution in groups is not tied")
    given, grid = channels(f, c, d)
    turned, extra = lattice(grid), each(a["output_padding"], d)
    size = tuple(weight.shape[2:])
    for word in ("stride", "padding", "dilation", "output_padding"):
        turned.demand_alike(word, each(a[word], d))
    turned.demand_alike("kernel", size)
    if any(n and back for n, back in zip(extra, turned.reversed, strict=True)):
        raise Unfit(f"output_padding {extra} adds pixels on one side: take 0 and another kernel")
    kernel = turned.on(size)
    shape = tuple(c.result.shape[2:])
    out = f.out(weight, weight.shape[1], moved=not kernel.rests, given=given.factors)
    f.tie(weight, given.factors, out, kernel, dual=(0,))
    f.tie(a["bias"], out)
    f.layer(weight, given.factors, out)
    made = Bearing.of(f.order, (turned.on(shape), shape))
    return Bearing.of(f.order, (out, (weight.shape[1],))) + made


def _batch_norm(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    permuting(x, c.name)
    block = x.split(1)[0].factors
    weight, bias = c.arg(3, "weight"), c.arg(4, "bias")
    for factor in (weight, bias):
        f.tie(factor, block)
    module = dict(f.model.named_modules()).get(f.place)
    if not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        raise Unfit("batch_norm outside of a BatchNorm module is not tied")
    if f.final and not f.pooled.setdefault(f.place, sure(block)).same(sure(block)):
        raise Unfit("it is called more than once, on inputs that the group moves differently")
    return x


def _layer_norm(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    count = len(c.arg(1, "normalized_shape"))
    left, last = x.split(len(x.shape) - count)
    if c.name == "layer_norm":
        permuting(last, c.name)
        f.tie(c.arg(3, "bias"), last.block)
    factor = c.arg(2, "weight")
    if factor is not None or c.name == "rms_norm":
        f.tie(factor, unsigned(last).block)
    return left + last


def _group_norm(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    permuting(x, c.name)
    first, _ = x.split(1)
    block, groups = first.block, c.arg(1, "num_groups")
    size = block.size // groups
    if isinstance(block, Representation):
        group = (block.source // size).reshape(f.order, groups, size)
        if not torch.equal(group[:, :, :1].expand_as(group), group):
            raise Unfit(
                f"{groups} groups of {size} channels do not hold whole fields of {f.order}; make "
                "the channels of a group a multiple of the elements"
            )
    for name, at in (("weight", 2), ("bias", 3)):
        f.tie(c.arg(at, name), block)
    return x


def _instance_norm(f: Follow, c: TorchCall) -> Bearing:
    x = held(f, c)
    permuting(x, c.name)
    if c.arg(1, "running_mean") is not None:
        raise Unfit("instance_norm with running statistics is not tied")
    block = x.split(1)[0].block
    for name, at in (("weight", 3), ("bias", 4)):
        f.tie(c.arg(at, name), block)
    return x


RULES: dict[str, Any] = {
    "linear": _linear,
    **{f"conv{d}d": _convolution for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _transposed for d in (1, 2, 3)},
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
