"""No silent pin: where the search finds fewer scales than there are, its notes name who is touched.

Truth by brute force, from gradients alone: scales v of single entries keep a loss exactly where
sum_i v_i theta_i g_i = 0 at every theta, so that their number is the nullity of theta * g over
random points.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.replay.statistics import running
from eqtoolbox.weights.discovery import discover, find_symmetries
from eqtoolbox.weights.families.diagonal import DiagonalSymmetry
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.found import Found

WIDTH = 4
Op = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """An operation between two linear layers; it may change the width."""

    def __init__(self, op: Op | nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = op
        self.a = nn.Linear(3, WIDTH)
        with torch.no_grad():
            width = op(self.a(torch.randn(6, 3))).shape[-1]
        self.h = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.op(self.a(x)))


class Apply(nn.Module):
    """An operation as a layer."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Images(nn.Module):
    """An operation on feature maps between two convolutions."""

    def __init__(self, op: Op | nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op, self.a = op, nn.Conv2d(1, WIDTH, 1)
        with torch.no_grad():
            made = op(self.a(torch.randn(2, 1, 4, 4)))
        self.h = nn.Conv2d(made.shape[1], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.op(self.a(x))).mean((2, 3))


def truth(model: nn.Module, batch: tuple[Tensor, Tensor]) -> int:
    """The number of independent scales of single entries, among those that do anything."""
    model = model.double()
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    count = sum(s.numel() for s in shapes)
    rng, rows = torch.Generator().manual_seed(1), []
    for _ in range(count + 10):
        flat = torch.randn(count, generator=rng, dtype=torch.float64)
        parts = flat.split([s.numel() for s in shapes])
        params = {
            n: p.view(s).requires_grad_() for n, p, s in zip(names, parts, shapes, strict=True)
        }
        output = torch.func.functional_call(model, params, (batch[0].double(),))
        loss = F.cross_entropy(output, batch[1])
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        row = [
            torch.zeros_like(p) if g is None else g * p
            for g, p in zip(grads, params.values(), strict=True)
        ]
        rows.append(torch.cat([r.detach().flatten() for r in row]))
    matrix = torch.stack(rows)
    live = matrix.abs().amax(0) > 1e-12  # a dead entry is free, and no symmetry to find
    values = torch.linalg.svdvals(matrix[:, live] / matrix[:, live].norm(dim=1, keepdim=True))
    return int(live.sum()) - int((values > 1e-9 * values[0]).sum())


def found_scales(found: Found) -> int:
    """Diagonal dimensions, those within larger matrix groups included."""
    total = 0
    for s in found:
        usable = s.status in ("verified", "approximate")
        if usable and isinstance(s, ContinuousSymmetry) and not s.equivariant:
            if isinstance(s, DiagonalSymmetry):
                total += s.dimension
            elif s.family in ("general_linear", "rope"):
                total += round(s.dimension**0.5) if s.family == "general_linear" else s.dimension
    return total


def batch_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    shape = (16, 1, 4, 4) if isinstance(model, Images) else (16, 3)
    return torch.randn(shape, generator=rng), torch.randint(0, 3, (16,), generator=rng)


def silent(model: nn.Module) -> str:
    """What is wrong: fewer scales found than there are, and nothing said of the layer before."""
    batch = batch_of(model)
    expected = truth(model, batch)
    found = discover(model.float(), batch)
    count, said = found_scales(found), " ".join(found.notes)
    told = "a.weight" in said or "could not be recorded" in said
    return "" if count >= expected or told else f"{count} of {expected}, notes {found.notes}"


def chunked(f: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda z: f(*z.chunk(2, -1))


OPS: dict[str, Op | nn.Module] = {
    "identity": lambda z: z, "relu": F.relu, "leaky": F.leaky_relu, "abs": torch.abs,
    "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "elu": F.elu,
    "softplus": F.softplus, "mish": F.mish, "relu6": F.relu6, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "hardtanh": F.hardtanh, "softsign": F.softsign,
    "logsigmoid": F.logsigmoid, "celu": F.celu, "selu": F.selu, "threshold": nn.Threshold(0.1, 0.0),
    "squared relu": lambda z: F.relu(z).square(), "cube": lambda z: z**3, "exp": torch.exp,
    "sqrt": lambda z: F.relu(z).add(1e-30).sqrt(), "reciprocal": torch.reciprocal,
    "glu": F.glu, "chunk gate": chunked(lambda u, v: u * v.sigmoid()),
    "product of halves": chunked(torch.mul), "quotient of halves": chunked(torch.div),
    "where leaky": lambda z: torch.where(z > 0, z, 0.1 * z), "mask": lambda z: z * (z > 0),
    "heaviside": lambda z: z * torch.heaviside(z.detach(), z.detach() * 0),
    "sign": lambda z: z * z.sign(), "clamp at zero": lambda z: z.clamp(min=0),
    "clamp": lambda z: z.clamp(-1, 1), "clamp minimum": lambda z: z.clamp(min=1e-6),
    "normalize": lambda z: F.normalize(z, dim=-1),
    "norm": lambda z: z / z.norm(dim=-1, keepdim=True),
    "topk": lambda z: z.topk(2, -1).values, "sort": lambda z: z.sort(-1).values,
    "scatter": lambda z: torch.zeros_like(z).scatter(
        -1, z.topk(2, -1).indices, z.topk(2, -1).values),
    "gather": lambda z: z.gather(-1, z.argsort(-1)[:, :2]), "cumsum": lambda z: z.cumsum(-1),
    "cumprod": lambda z: z.cumprod(-1), "flip": lambda z: z.flip(-1),
    "roll": lambda z: z.roll(1, -1),
    "index": lambda z: z[:, [2, 0, 3, 1]], "index select": lambda z: z.index_select(
        -1, torch.tensor([3, 1])), "repeat": lambda z: z.repeat(1, 2),
    "repeat interleave": lambda z: z.repeat_interleave(2, -1),
    "cat": lambda z: torch.cat([z, F.relu(z)], -1),
    "stack": lambda z: torch.stack([z, F.relu(z)], -1).flatten(1),
    "pad": lambda z: F.pad(z, (1, 1)),
    "one's complement": lambda z: 1 - z, "maximum of halves": chunked(torch.maximum),
    "lerp": chunked(lambda u, v: torch.lerp(u, v, 0.3)), "addcmul": chunked(
        lambda u, v: torch.addcmul(u, u, v)), "remainder": lambda z: torch.remainder(z, 1.0),
    "softmax": lambda z: z.softmax(-1), "log softmax": lambda z: z.log_softmax(-1),
    "logsumexp": lambda z: z.logsumexp(-1, keepdim=True),
    "mean": lambda z: z.mean(-1, keepdim=True),
    "amax": lambda z: z.amax(-1, keepdim=True), "std": lambda z: z.std(-1, keepdim=True),
    "prod": lambda z: z.prod(-1, keepdim=True),
    "layer norm": lambda z: F.layer_norm(z, (z.shape[-1],)),
    "rms norm": lambda z: F.rms_norm(z, (z.shape[-1],)), "batch norm": nn.BatchNorm1d(WIDTH),
    "prelu": nn.PReLU(), "prelu by channel": nn.PReLU(WIDTH), "dropout off": nn.Dropout(0.0),
    "einsum": lambda z: torch.einsum("bi,bj->bij", z, z).flatten(1),
    "kron": lambda z: (z[:, :, None] * z[:, None]).flatten(1), "outer sum": lambda z: (
        z[:, :, None] + z[:, None]).flatten(1),
    "cdist": lambda z: torch.cdist(z[:, :, None], z[:, :, None]).flatten(1),
    "attention": lambda z: F.scaled_dot_product_attention(*(z.view(-1, 2, 2),) * 3).flatten(1),
    "tril": lambda z: z.view(-1, 2, 2).tril().flatten(1),
    "diagonal": lambda z: z.view(-1, 2, 2).diagonal(dim1=1, dim2=2),
    "unfold": lambda z: z.unfold(-1, 2, 1).flatten(1), "masked fill": lambda z: z.masked_fill(
        torch.tensor([False, True, False, True]), 0.0),
    "rot": lambda z: torch.cat([-z[:, 2:], z[:, :2]], -1),
    "complex": lambda z: torch.view_as_real(
        torch.view_as_complex(z.view(-1, 2, 2).contiguous())).flatten(1),
    "fft": lambda z: torch.fft.rfft(z).abs(), "round": torch.round, "atan": torch.atan,
    "nan to num": torch.nan_to_num, "argmax": lambda z: z * F.one_hot(z.argmax(-1), z.shape[-1]),
    "amin": lambda z: z.amin(-1, keepdim=True), "max": lambda z: z.max(-1, keepdim=True).values,
    "scatter add": lambda z: torch.zeros(len(z), 2, dtype=z.dtype).scatter_add(
        1, torch.tensor([0, 1, 0, 1]).expand_as(z), z), "index add": lambda z: torch.zeros(
        len(z), 2, dtype=z.dtype).index_add(1, torch.tensor([0, 1, 0, 1]), z),
}  # fmt: skip
MAPS: dict[str, Op | nn.Module] = {
    "groups": nn.Conv2d(WIDTH, WIDTH, 1, groups=2, bias=False),
    "groups and relu": nn.Sequential(nn.LeakyReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.LeakyReLU()),
    "transposed groups": nn.ConvTranspose2d(WIDTH, 6, 1, groups=2),
    "depthwise": nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH, padding=1),
    "batch norm": nn.BatchNorm2d(WIDTH), "batch norm, evaluated": nn.BatchNorm2d(WIDTH).eval(),
    "group norm": nn.GroupNorm(2, WIDTH), "instance norm": nn.InstanceNorm2d(WIDTH, affine=True),
    "pool": nn.MaxPool2d(2), "mean pool": nn.AvgPool2d(2), "adaptive": nn.AdaptiveAvgPool2d(2),
    "pixel shuffle": nn.PixelShuffle(2), "upsample": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"), "shuffle": nn.ChannelShuffle(2),
    "unfold": lambda z: F.unfold(z, 2).unsqueeze(-1), "squeeze and excite": lambda z: (
        z * z.mean((2, 3), keepdim=True).sigmoid()), "prelu": nn.PReLU(WIDTH),
    "response": nn.LocalResponseNorm(2), "channel mean": lambda z: z - z.mean(1, keepdim=True),
    "dropout": nn.Dropout2d(0.0), "lp pool": nn.LPPool2d(2, 2), "softmax": nn.Softmax2d(),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_no_operation_on_vectors_pins_silently(name: str) -> None:
    assert not silent(Around(OPS[name]))


@pytest.mark.parametrize("name", MAPS)
def test_no_operation_on_images_pins_silently(name: str) -> None:
    assert not silent(Images(MAPS[name]))


class Twice(nn.Module):
    """One layer applied twice: GL(4) moves both uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.h = (nn.Linear(*s, bias=False) for s in ((3, 4), (4, 4), (4, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.b(self.b(self.a(x))))


class Joined(nn.Module):
    """Two branches side by side: units of either may change places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.h = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.cat([F.gelu(self.a(x)), F.gelu(self.b(x))], -1))


PERMUTED: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "twice": (Twice(), {"general_linear": 16}),
    "joined": (Joined(), {"permutation": 6}),
    "softmax": (Around(lambda z: z.softmax(-1)), {"permutation": 3}),
    "one's complement": (Around(lambda z: 1 - z.tanh()), {"permutation": 3}),
    "prelu by channel": (Around(nn.PReLU(WIDTH)), {"permutation": 3}),
    "batch norm, evaluated": (
        Images(nn.Sequential(nn.BatchNorm2d(WIDTH), nn.GELU()).eval()), {"permutation": 3},
    ),
    "told apart": (Around(lambda z: (z * torch.arange(4).to(z)).softmax(-1)), {}),
}  # fmt: skip


def exchanges(found: Found) -> dict[str, int]:
    """Dimensions of what units are exchanged by."""
    total: dict[str, int] = {}
    for s in found:
        if s.status == "verified" and s.family in ("permutation", "general_linear"):
            total[s.family] = total.get(s.family, 0) + s.dimension
    return total


@pytest.mark.parametrize("name", PERMUTED)
def test_units_that_may_change_places_are_found(name: str) -> None:
    model, expected = PERMUTED[name]
    assert exchanges(discover(model.float(), batch_of(model))) == expected


def test_permutations_that_are_missed_are_named() -> None:
    model, _ = PERMUTED["batch norm, evaluated"]
    model, (x, y) = model.float(), batch_of(model)
    assert "scales of channels through it" in " ".join(discover(model, (x, y)).notes)
    params = {n: p.detach() for n, p in model.named_parameters()}
    loss = lambda p: F.cross_entropy(torch.func.functional_call(model, p, (x,)), y)
    found = find_symmetries(loss, params)  # buffers that nobody names are numbers
    assert "permutations of channels through it" in " ".join(found.notes)
    named = find_symmetries(loss, params, statistics=running(dict(model.named_buffers())))
    assert "permutations of" not in " ".join(named.notes) and exchanges(named)["permutation"] == 3
    model = Around(lambda z: torch.fft.rfft(z).abs())
    assert "no rule for" in " ".join(discover(model, batch_of(model)).notes)


class Looked(nn.Module):
    """Rows of a table, normalised or not."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Embedding(5, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12) if normalised else nn.Identity()
        self.h = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.h(self.norm(self.a(tokens)))


def test_scales_of_rows_are_found_where_a_normalisation_takes_them() -> None:
    batch = torch.arange(5).repeat(3), torch.randint(0, 3, (15,))
    for normalised in (True, False):
        found = discover(Looked(normalised), batch)
        rows = [s.dimension for s in found if s.family == "scale" and s.names == ("a.weight",)]
        assert rows == ([5] if normalised else [])


def test_scales_of_rows_at_places_that_are_one_axis_twice_are_named() -> None:
    """What stands at (i, j) and at (j, i) is told apart by no slot: rows stay as they are."""
    tokens = torch.randint(0, 5, (4, 4))
    batch = tokens, torch.randint(0, 3, (4, 4))
    for turned in (True, False):
        model = Looked(True)
        if turned:
            model.norm.register_forward_pre_hook(lambda _, z: (z[0] * z[0].transpose(0, 1),))
        said = " ".join(discover(model, batch).notes)
        assert ("scales of rows are missed: a.weight" in said) == turned


def test_scales_that_are_missed_for_the_size_of_an_axis_are_named() -> None:
    """(8, 12) as (12, 8): no two rows line up, and 96 entries are too many to be told apart."""
    uneven = lambda z: F.relu(z).view(-1, 8, 12).reshape(-1, 12, 8).mean(-1)
    pooled = lambda z: F.max_pool1d(z[:, None], 2).flatten(1)
    x, y = torch.randn(9, 3), torch.randint(0, 3, (9,))
    for op, wide, said in ((uneven, 12, "do not line up"), (pooled, 48, "pooling along an axis")):
        model = nn.Sequential(nn.Linear(3, 96), Apply(op), nn.Linear(wide, 3))
        notes = " ".join(discover(model, (x, y)).notes)
        assert said in notes and "0.weight" in notes
        small = nn.Sequential(nn.Linear(3, 96), nn.ReLU(), nn.Linear(96, 3))
        assert said not in " ".join(discover(small, (x, y)).notes)


class Recurrent(nn.Module):
    """A weight from units along two axes to the same units along two others, added or not."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.added, self.a, self.h = added, nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.w = nn.Parameter(torch.randn(2, 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).view(-1, 2, 2).tanh()
        y = torch.einsum("bgh,ghkl->bkl", z, self.w)
        return self.h((y + z if self.added else y).tanh().flatten(1))


def test_units_across_axes_in_two_ways_are_named() -> None:
    for added in (True, False):
        model = Recurrent(added)
        found = discover(model, batch_of(Around(nn.Tanh())))
        said = " ".join(found.notes)
        assert ("two ways: their signs are missed: w" in said) == added
        assert ("two ways: their permutations are missed" in said) == added
        families = {s.family for s in found}
        assert ({"permutation", "sign_flip"} <= families) != added


class Block(nn.Module):
    """A transformer's layer on four tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(3, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 6, 0.0, "relu", batch_first=True)
        self.h = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x.roll(1, -1), -x, x * x], 1)
        return self.h(self.block(self.a(tokens))[:, 0])


def test_a_transformer_layer_pins_nothing_silently() -> None:
    assert not silent(Block())


def test_a_pin_without_a_note_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The must-fail twin: the same search with its notes taken away."""
    monkeypatch.setattr("eqtoolbox.weights.tracing.pinned.Pinned.notes", lambda self: [])
    assert "0 of" in silent(Around(OPS["threshold"]))
    assert "of" in silent(Images(MAPS["batch norm, evaluated"]))
    assert not silent(Around(F.relu))
