"""How windows that slide over a grid, pools and resizing, commute with its turns."""

from math import prod
from typing import Any

from eqtoolbox.enforce.bearing import Bearing, permuting
from eqtoolbox.enforce.follow import Follow
from eqtoolbox.enforce.lattice import Lattice
from eqtoolbox.enforce.representation import Representation, Unfit
from eqtoolbox.enforce.tie_pointwise import held
from eqtoolbox.enforce.torch_calls import TorchCall


def each(value: Any, d: int) -> tuple[int, ...]:
    """One number a dimension."""
    return (value,) * d if isinstance(value, int) else tuple(value) * (d if len(value) == 1 else 1)


def channels(f: Follow, c: TorchCall, d: int | None = None) -> tuple[Bearing, Bearing]:
    """The channels and the grid of a batch (batch, channels, ...).

    Raises:
        Unfit: it has another number of dimensions.
    """
    x = held(f, c)
    if d is not None and len(x.shape) != d + 1:
        raise Unfit(f"expected a batch of {d + 1} dimensions a sample, got {x.shape}")
    return x.split(1)


def lattice(grid: Bearing) -> Lattice:
    """How the grid of an image is turned.

    Raises:
        Unfit: it is moved otherwise.
    """
    pixels = grid.block
    if not isinstance(pixels, Representation):
        raise Unfit("it moves a window along what is no grid of the input")
    return Lattice.of(pixels, grid.shape)


def _pool(f: Follow, c: TorchCall) -> Bearing:
    """A window of sliding maxima or means."""
    d = int(c.name.rstrip("d")[-1])
    _, grid = channels(f, c, d)
    largest = not c.name.startswith("avg")
    if largest:
        permuting(held(f, c), c.name)
    kernel = each(c.arg(1 + (c.name[0] == "l"), "kernel_size"), d)
    stride = each(c.arg(2 + (c.name[0] == "l"), "stride") or kernel, d)
    padding = each(0 if c.name[0] == "l" else c.arg(3, "padding", 0), d)
    dilation = each(c.arg(4, "dilation", 1) if c.name[0] == "m" else 1, d)
    window = tuple(w * (k - 1) + 1 for w, k in zip(dilation, kernel, strict=True))
    turned = lattice(grid)
    turned.demand_centred(grid.shape, window, stride, padding)
    return _resized(f, c, turned)


def _adaptive(f: Follow, c: TorchCall) -> Bearing:
    """Windows that part the grid evenly, the same from both ends."""
    if c.name.startswith("adaptive_max"):
        permuting(held(f, c), c.name)
    _, grid = channels(f, c)
    if prod(c.result.shape[2:]) == 1:
        pixels = grid.block
        if isinstance(pixels, Representation) and not pixels.permutes:
            raise Unfit("pooling over pixels that change sign")
        return held(f, c).split(1)[0] + Bearing.still(f.order, c.result.shape[2:])
    return _resized(f, c, lattice(grid))


def _interpolate(f: Follow, c: TorchCall) -> Bearing:
    _, grid = channels(f, c)
    before, after = grid.shape, tuple(c.result.shape[2:])
    mode = c.kwargs.get("mode", c.args[3] if len(c.args) > 3 else "nearest")
    turned = lattice(grid)
    back = zip(before, after, turned.reversed, strict=True)
    if mode == "nearest" and any(b % a and r for a, b, r in back):
        raise Unfit(f"nearest pixels from {before} to {after} are rounded to one side")
    return _resized(f, c, turned)


def _pad(f: Follow, c: TorchCall) -> Bearing:
    widths = list(c.arg(1, "pad"))
    pairs = [tuple(widths[i : i + 2]) for i in range(0, len(widths), 2)][::-1]
    x = held(f, c)
    at = len(x.shape) - len(pairs)
    if at < 1 and any(p != (0, 0) for p in pairs):
        raise Unfit("padding of channels is not tied")
    value = c.kwargs.get("value", c.args[3] if len(c.args) > 3 else None)
    if value:
        permuting(x, "padding by a number")
    first, grid = x.split(1)
    turned = lattice(grid)
    pairs = [(0, 0)] * (len(grid.shape) - len(pairs)) + pairs
    turned.demand_alike("padding", pairs)
    for (before, after), back in zip(pairs, turned.reversed, strict=True):
        if before != after and back:
            raise Unfit(f"padding {before} on one side and {after} on the other of a turned axis")
    return _resized(f, c, turned, first)


def _resized(f: Follow, c: TorchCall, turned: Lattice, first: Bearing | None = None) -> Bearing:
    """The same turns on the grid of the result."""
    shape = tuple(c.result.shape[2:])
    return (first or held(f, c).split(1)[0]) + Bearing.of(f.order, (turned.on(shape), shape))


RULES: dict[str, Any] = {
    **{f"{kind}_pool{d}d": _pool for kind in ("max", "avg", "lp") for d in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{d}d": _adaptive for kind in ("max", "avg") for d in (1, 2, 3)},
    "interpolate": _interpolate,
    "pad": _pad,
}
