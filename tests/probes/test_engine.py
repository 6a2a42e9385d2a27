"""What Hessian products survive: one line a case, the mode the self-test chose, and its error.

The reference is central differences of first gradients in float64 (smooth networks), or
forward-over-reverse (kinks): neither is the code under test.
"""

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from eqtoolbox.linalg import finite_difference, hessian
from eqtoolbox.linalg.vectors import add, norm, random_like, scale
from eqtoolbox.probes.engine import Engine, SelfTest, _thrifty
from eqtoolbox.probes.operators import operator
from eqtoolbox.probes.proving import self_test
from eqtoolbox.replay import isolation
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.watch.capture.start import buffers_of
from eqtoolbox.watch.snapshot import NotApplicable

D, TOKENS, SAMPLES, CLASSES = 8, 5, 6, 3


class Around(nn.Module):
    """A smooth layer before and a linear head behind the layer in question."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.before, self.body, self.head = nn.Linear(D, D), body, nn.Linear(D, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.tanh(self.before(x))).mean(1))


class Attention(nn.Module):
    """Scaled dot product attention inside the user's own choice of kernel."""

    def __init__(self, inner: SDPBackend | None = None, masked: bool = False) -> None:
        super().__init__()
        self.qkv, self.inner, self.masked = nn.Linear(D, 3 * D), inner, masked

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).view(SAMPLES, TOKENS, 3, 2, D // 2)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril() if self.masked else None
        if self.inner is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            with sdpa_kernel(self.inner):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(SAMPLES, TOKENS, D)


class Multihead(nn.Module):
    def __init__(self, inner: SDPBackend | None = None) -> None:
        super().__init__()
        self.attention, self.inner = nn.MultiheadAttention(D, 2, batch_first=True), inner

    def forward(self, x: Tensor) -> Tensor:
        if self.inner is None:
            return self.attention(x, x, x, need_weights=False)[0]
        with sdpa_kernel(self.inner):
            return self.attention(x, x, x, need_weights=False)[0]


class First(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.inner = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Dropout(0.2), nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class RawBackward(torch.autograd.Function):
    """A backward of raw data: its derivative with respect to the input is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return (3 * x).sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g * (3 * ctx.x).cos()


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(D, D), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.b.weight = self.a.weight
        self.unused = nn.Linear(D, D)
        self.frozen = nn.Linear(D, D).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.frozen(self.a(x))))


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(D, D).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + x @ self.a.T @ self.b.T)


class Tokens(nn.Module):
    """Token ids made from the inputs, embedded sparsely."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, D, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(SAMPLES * TOKENS).view(SAMPLES, TOKENS) % 10
        return torch.tanh(self.embedding(ids)) * x.mean()


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.tanh(self.linear(x)).float()


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def encoder(dropout: float = 0.1) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 16, dropout, "gelu", batch_first=True)


def compiled_parts() -> nn.Module:
    inner = nn.Sequential(nn.Linear(D, D), nn.Tanh())
    inner.compile(backend="aot_eager")
    return inner


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sdpa, default kernel": (Attention, "exact"),
    "sdpa, masked": (lambda: Attention(masked=True), "exact"),
    "sdpa, inner flash": (lambda: Attention(SDPBackend.FLASH_ATTENTION), "exact"),
    "sdpa, inner efficient": (lambda: Attention(SDPBackend.EFFICIENT_ATTENTION), "exact"),
    "sdpa, inner math": (lambda: Attention(SDPBackend.MATH), "exact"),
    "multihead attention": (Multihead, "exact"),
    "multihead, inner flash": (lambda: Multihead(SDPBackend.FLASH_ATTENTION), "exact"),
    "transformer encoder layer": (encoder, "exact"),
    "lstm": (lambda: First(nn.LSTM(D, D, batch_first=True)), "exact"),
    "gru": (lambda: First(nn.GRU(D, D, batch_first=True)), "exact"),
    "checkpoint, not reentrant": (lambda: Checkpointed(False), "exact"),
    "checkpoint, reentrant": (lambda: Checkpointed(True), "exact"),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, D)), "exact"),
    "weight_norm, old": (lambda: nn.utils.weight_norm(nn.Linear(D, D)), "exact"),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(D, D)), "exact"),
    "compiled module": (lambda: torch.compile(encoder(), backend="aot_eager"), "exact"),
    "compiled submodule": (compiled_parts, "exact"),
    "bf16 autocast inside": (Autocast, "any"),
    "dropout": (lambda: nn.Dropout(0.3), "exact"),
    "batch norm in train mode": (Norm, "exact"),
    "tied, frozen, unused": (Tied, "exact"),
    "LoRA adapter": (Lora, "exact"),
    "sparse embedding": (Tokens, "exact"),
    "once_differentiable": (lambda: Apply(OnceDifferentiable.apply), "differenced"),
    "backward of raw data": (lambda: Apply(RawBackward.apply), "differenced"),
    "relu": (lambda: nn.Sequential(nn.Linear(D, D), nn.ReLU()), "exact"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated, and used
        return Around(make())


def objective(model: nn.Module, loss_fn: Any = None, batch: Any = None) -> Objective:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, TOKENS, D, generator=generator)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    return Objective(
        model=model,
        loss_fn=loss_fn or (lambda m, b: F.cross_entropy(m(b[0]), b[1])),
        batch=batch or (x, y),
        random=RandomState.seeded(0),
        buffers=buffers_of(model),
    )


def gradient(loss: Objective, params: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    with loss.scope(leaves):
        rows = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return {n: r.to_dense() for n, r in zip(leaves, rows, strict=True)}


def reference(loss: Objective, params: dict[str, Tensor], v: dict[str, Tensor], h: float) -> Any:
    """Central difference of first gradients along v."""
    up, down = (gradient(loss, add(params, v, s * h)) for s in (1, -1))
    return scale(0.5 / h, add(up, down, -1.0))


def error_of(
    model: nn.Module, *, train: bool = True, h: float = 1e-5, **options: Any
) -> tuple[str, str, float]:
    """Chosen mode, its reason, and the relative error of one product, in float64."""
    dtype = torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = objective(model.to(dtype).train(train), **options).to(dtype)
        with loss.isolated():
            params = loss.parameters()
            test = self_test(loss, params)
            matrix = operator(loss, params, test)
            v = random_like(params, torch.Generator().manual_seed(1))
            got = matrix(v)
            if any(isinstance(m, nn.ReLU) for m in model.modules()):
                want = torch.func.jvp(torch.func.grad(loss), (params,), (v,))[1]
            else:
                want = reference(loss, params, v, h)
    return test.mode, test.reason, norm(add(got, want, -1.0)) / norm(want)


@pytest.mark.parametrize("name", [n for n in CASES if "autocast" not in n])
def test_products_are_right_in_the_mode_that_is_chosen(name: str) -> None:
    make, mode = CASES[name]
    torch.manual_seed(1)
    # in train mode spectral_norm moves its vectors with the weights, which no gradient sees
    chosen, reason, error = error_of(made(make), train=name != "spectral_norm")
    assert chosen == mode, reason
    assert error < (1e-6 if mode == "exact" else 1e-3), f"{name}: {reason}"


@pytest.mark.parametrize("name", CASES)
def test_the_same_mode_is_chosen_in_float32(name: str) -> None:
    make, mode = CASES[name]
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = objective(made(make).train())
        with loss.isolated():
            test = self_test(loss, loss.parameters())
    assert mode in (test.mode, "any"), test.reason


def test_a_compiled_loss_function_is_exact() -> None:
    torch.manual_seed(1)
    whole = torch.compile(lambda m, b: F.cross_entropy(m(b[0]), b[1]), backend="aot_eager")
    mode, reason, error = error_of(Around(encoder()), loss_fn=whole)
    assert (mode, error < 1e-6) == ("exact", True), reason


def causal_lm(kind: str, checkpointing: bool) -> tuple[nn.Module, Any]:
    import transformers as hf

    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    if kind == "llama":
        config = hf.LlamaConfig(
            **small, intermediate_size=24, vocab_size=31, num_key_value_heads=1,
            max_position_embeddings=16,
        )  # fmt: skip
        model = hf.LlamaForCausalLM(config)
    else:
        config = hf.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=31, n_positions=16)
        model = hf.GPT2LMHeadModel(config)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.gradient_checkpointing_enable()
    ids = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_hugging_face_models_are_exact(kind: str, checkpointing: bool) -> None:
    torch.manual_seed(0)
    model, batch = causal_lm(kind, checkpointing)
    loss_fn = lambda m, b: m(**b)
    # they compute norms, softmax and loss in float32 whatever the weights are, hence h
    mode, reason, error = error_of(model, loss_fn=loss_fn, batch=batch, h=3e-5)
    assert mode == "exact", reason
    assert error < 1e-3


def test_without_the_twins_weight_norm_is_silently_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what torch itself gives for the product that the table calls right."""
    monkeypatch.setattr(isolation, "twice_differentiable", lambda modules: nullcontext())
    torch.manual_seed(1)
    model = Around(nn.utils.parametrizations.weight_norm(nn.Linear(D, D))).double()
    loss = objective(model).to(torch.float64)
    params = loss.parameters()
    v = random_like(params, torch.Generator().manual_seed(1))
    got = hessian(loss, params)(v)
    want = reference(loss, params, v, 1e-5)
    assert norm(add(got, want, -1.0)) > 0.05 * norm(want)


def test_a_loss_with_its_own_randomness_is_refused() -> None:
    def noisy(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        own = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
        return F.cross_entropy(model(x + torch.randn(x.shape, generator=own)), y)

    loss = objective(Around(nn.Tanh()), loss_fn=noisy)
    with loss.isolated(), pytest.raises(NotApplicable, match="the loss is random"):
        self_test(loss, loss.parameters())


def behind_kinks(*rest: nn.Module) -> Objective:
    torch.manual_seed(1)
    return objective(
        Around(nn.Sequential(Apply(OnceDifferentiable.apply), nn.Linear(D, D), nn.ReLU(), *rest))
    )


def test_no_second_derivative_behind_kinks_is_differenced_in_float64() -> None:
    loss = behind_kinks()
    with loss.isolated():
        params = loss.parameters()
        test = self_test(loss, params)
        v = random_like(params, torch.Generator().manual_seed(1))
        got = operator(loss, params, test)(v)
        wide = {n: p.double() for n, p in params.items()}
        want = reference(loss.to(torch.float64), wide, {n: x.double() for n, x in v.items()}, 1e-9)
        assert (test.mode, test.smooth) == ("differenced", False), test.reason
        assert norm(add(want, got, -1.0)) < 1e-4 * norm(want)
        with pytest.raises(ValueError, match="need a smooth gradient"):
            finite_difference(loss, params)(v)


class Single(nn.Module):
    """Computes in float32 whatever it is given, as norms of language models do."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().to(x.dtype)


def test_a_wrong_backward_behind_kinks_is_found_where_the_model_casts_to_float32_itself() -> None:
    loss = behind_kinks(Single())
    with loss.isolated():
        test = self_test(loss, loss.parameters())
    assert (test.mode, test.smooth) == ("differenced", False)
    assert "once_differentiable" in test.reason


class BagNet(nn.Module):
    """Bags of rows: of maxima torch has no second derivative at all."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(10, D, mode=mode), nn.Linear(D, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(SAMPLES * TOKENS).view(SAMPLES, TOKENS) % 10
        return self.head(torch.tanh(self.bag(ids)))


def test_an_operation_without_second_derivative_is_differenced_and_named() -> None:
    torch.manual_seed(1)
    mode, reason, error = error_of(BagNet("max"))
    assert mode == "differenced"
    assert "embedding_bag" in reason
    assert error < 1e-3


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_bags_of_sums_and_means_are_exact(kind: str) -> None:
    torch.manual_seed(1)
    mode, reason, error = error_of(BagNet(kind))
    assert mode == "exact", reason
    assert error < 1e-6


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        (lambda: nn.Sequential(nn.Linear(D, D), nn.ReLU()), "split"),
        (Norm, "differenced"),
        (lambda: nn.Sequential(Norm(), nn.ReLU(), nn.Linear(D, D), nn.ReLU()), "rebuilt"),
    ],
    ids=["mean of samples", "batch norm", "batch norm and kinks"],
)
def test_low_memory_retains_nothing_and_stays_right(body: Any, mode: str) -> None:
    torch.manual_seed(1)
    loss = objective(Around(body()))
    x, y = loss.batch
    loss = replace(loss, batch=(torch.cat([x * s for s in range(1, 9)]), y.repeat(8)))
    with loss.isolated():
        params = loss.parameters()
        test = _thrifty(loss, params, self_test(loss, params))
        assert test.mode == mode, test.reason
        v = random_like(params, torch.Generator().manual_seed(1))
        got, want = operator(loss, params, test)(v), hessian(loss, params)(v)
    assert norm(add(got, want, -1.0)) < (1e-2 if mode == "differenced" else 1e-5) * norm(want)


def test_splitting_a_loss_that_is_no_mean_of_its_pieces_is_noticed() -> None:
    """Negative control: a sum over the batch."""
    torch.manual_seed(1)
    total = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum")
    loss = objective(Around(nn.Sequential(nn.Linear(D, D), nn.ReLU())), loss_fn=total)
    x, y = loss.batch
    loss = replace(loss, batch=(torch.cat([x, x * 0.5]), torch.cat([y, y])))
    with loss.isolated():
        params = loss.parameters()
        test: SelfTest = _thrifty(loss, params, self_test(loss, params))
    assert test.mode == "rebuilt"
    assert "off the mean of its pieces" in test.reason


def test_autocast_around_the_loss_is_off_unless_asked_for() -> None:
    torch.manual_seed(1)
    plain = objective(Around(nn.Tanh()))
    cast = replace(plain, autocast=("cpu", torch.bfloat16))
    params = plain.parameters()
    with plain.isolated():
        full, rough = plain(params).item(), cast(params).item()
        test = self_test(cast, params)
    assert full != rough
    assert rough == pytest.approx(full, rel=2e-2)
    assert test.coarsest > 1e-3


@pytest.mark.parametrize("option", [{"memory": "tiny"}, {"precision": "half"}])
def test_unknown_engine_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be one of \("):
        Engine(**option)
