"""Operations: torch's functions as a replay runs them.

What has no second derivative, or a wrong one, is exchanged for its twin (torch 2.13); what writes
into tensors of the training or draws random numbers is announced to the replay first.
"""

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from types import FunctionType, MethodWrapperType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.replay.embeddings import dense, embedding, embedding_bag
from eqtoolbox.replay.graph import leaves_of
from eqtoolbox.replay.modes import OwnMode
from eqtoolbox.replay.thread.scope import current

_IN_PLACE = frozenset({
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__imod__",
    "__ifloordiv__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
})  # fmt: skip
_DRAWS = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "bernoulli", "multinomial", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet",
    "uniform_", "normal_", "random_", "exponential_", "cauchy_", "log_normal_", "geometric_",
    "bernoulli_", "rrelu", "rrelu_", "rrelu_with_noise", "gumbel_softmax", "trunc_normal_",
    "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_",
    "sparse_", "fractional_max_pool2d", "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d", "fractional_max_pool3d_with_indices",
})  # fmt: skip
_DROPS = frozenset({  # that draw in training only, where something is dropped
    "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "alpha_dropout_", "feature_dropout", "feature_dropout_", "feature_alpha_dropout",
    "feature_alpha_dropout_", "native_dropout", "lstm", "gru", "rnn_tanh", "rnn_relu",
})  # fmt: skip


_GRAD = torch._C.TensorBase.grad
Made = TypeVar("Made")


class Operations(OwnMode):
    """Scope in which operations are twice differentiable, and announced to the thread's replay."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if type(func) is MethodWrapperType:  # an attribute is read or set
            if func.__self__ is _GRAD and func.__name__ == "__get__" and _inner(args[0]):
                return None  # torch warns of it: the loss means the leaf that trains
            return func(*args)
        acts = _acts.get(func)
        if acts is None:
            _acts[func] = acts = _acts_of(func)
        kwargs = kwargs or {}
        if kwargs:
            _announce_named(kwargs, args)
        for announce in acts.announce:
            announce(args, kwargs)
        if acts.twin is not None:
            return acts.twin(self, args, kwargs)
        return func(*args, **kwargs)


def _inner(tensor: Tensor) -> bool:
    """Whether it stands for a leaf inside a derivative, and so has no `.grad`."""
    return not tensor.is_leaf and not tensor.retains_grad


class _Acts:
    """What is done about one function: what is announced before it runs, and what runs for it."""

    def __init__(self, announce: tuple[Any, ...] = (), twin: Any = None) -> None:
        self.announce, self.twin = announce, twin


def _acts_of(func: Callable[..., Any]) -> _Acts:
    name = str(getattr(func, "__name__", ""))
    announce = []
    if name in _DRAWS:
        announce.append(_draws)
    elif name in _DROPS:
        announce.append(_drops)
    if (name.endswith("_") and not name.startswith("__")) or name in _IN_PLACE:
        announce.append(_writes_all if name.startswith("_fused") else _writes)
    return _Acts(tuple(announce), _TWINS.get(func))


# -- announcements ---------------------------------------------------------------------------------


def _draws(args: Any, kwargs: Any) -> None:
    replay = current()
    if replay is not None and kwargs.get("generator") is None:
        replay.draw()


def _drops(args: Any, kwargs: Any) -> None:
    numbers = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, (bool, float, int))]
    flags = [x for x in numbers if isinstance(x, bool)]
    if (not flags or any(flags)) and (not numbers or any(numbers)):
        _draws(args, {})


def _writes(args: Any, kwargs: Any) -> None:
    _written(args[0] if args else kwargs.get("self", kwargs.get("input")))


def _writes_all(args: Any, kwargs: Any) -> None:
    for one in (*args, *kwargs.values()):
        _written(one)


def _written(one: Any) -> None:
    replay = current()
    if replay is None:
        return
    for x in one if isinstance(one, (list, tuple)) else (one,):
        if isinstance(x, Tensor):
            replay.writes(x)


def _announce_named(kwargs: dict[str, Any], args: Any) -> None:
    if "out" in kwargs:
        _written(kwargs["out"])
    if kwargs.get("inplace") and args:
        _written(args[0])


# -- twins -----------------------------------------------------------------------------------------


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim`, from operations that differentiate.

    Example:
        >>> weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))
        tensor([[1.2000, 1.6000]])
    """
    scaled: Tensor = v * (g / torch.norm_except_dim(v, 2, dim))
    return scaled


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T scale + mask) V by torch's mathematical kernel: fused ones differentiate once.

    The kernel is called by its name, as choosing it would be for all threads of the process.
    """
    kind = query.device.type if query.device.type != "meta" else "cpu"  # no autocast on meta
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        none = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, torch.zeros_like(none), none)
    given = (query, key, value, attn_mask)
    if torch.is_autocast_enabled(kind):  # which the operation itself leaves, its operands cast
        narrow = torch.get_autocast_dtype(kind)
        given = tuple(None if x is None else x.to(narrow) for x in given)  # type: ignore[assignment]
    if dropout_p > 0:
        _draws((), {})
    with torch.autocast(kind, enabled=False):
        made: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            *given, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    return made


def _attends(mode: Operations, args: Any, kwargs: Any) -> Tensor:
    """By torch's own choice of a kernel where that will do: no T x T weights are kept."""
    replay, dropped = current(), kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
    if replay is not None and replay.once and not dropped:  # masks are the same everywhere
        with suppress(RuntimeError):  # one that the model chose, which has no float64
            return F.scaled_dot_product_attention(*args, **kwargs)
    return attention(*args, **kwargs)


def by_kernels(function: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """`function(*args, **kwargs)`, differentiated once at most: evaluated as the training does.

    Where a loss itself differentiates what a kernel has no derivative of, by formulas after all.
    """
    replay = current()
    if replay is None or replay.once:
        return function(*args, **kwargs)
    replay.once = True
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        if "implemented" not in str(error):
            raise
    finally:
        replay.once = False
    return function(*args, **kwargs)


def opened(function: Any) -> Callable[..., Any]:
    """A function of torch's own in Python whose inner calls come to the mode, too."""
    space = dict(function.__globals__)
    space |= {name: _never for name in space if name.startswith("has_torch_function")}
    twin = FunctionType(
        function.__code__, space, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _never(*args: Any) -> bool:
    return False


def _runs_opened(function: Any) -> Any:
    inner = opened(function)

    def run(mode: Operations, args: Any, kwargs: Any) -> Any:
        with mode:
            return inner(*args, **kwargs)

    return run


def _backward(mode: Operations, args: Any, kwargs: Any) -> Any:
    """A backward adds to gradients, which it does not tell.

    It may be the training's own, of a loss that runs it and returns what it has differentiated: a
    probe will do so again.
    """
    replay = current()
    if replay is not None:
        named = signature(torch.autograd.backward).bind(*args, **kwargs).arguments
        args, kwargs = (), {**named, "retain_graph": True}
        reached = named.get("inputs")
        if reached is None:
            reached = leaves_of(named["tensors"])
        for leaf in [reached] if isinstance(reached, Tensor) else list(reached or ()):
            if isinstance(leaf, Tensor):
                replay.adds_to(leaf)
    return _runs_backward(mode, args, kwargs)


_runs_backward = _runs_opened(torch.autograd.backward)


def _runs(twin: Callable[..., Tensor]) -> Any:
    return lambda mode, args, kwargs: twin(*args, **kwargs)


_TWINS: dict[Any, Any] = {
    F.embedding: _runs(embedding),
    torch.embedding: _runs(dense(torch.embedding, 4, "sparse")),
    torch.gather: _runs(dense(torch.gather, 3, "sparse_grad")),
    Tensor.gather: _runs(dense(torch.gather, 3, "sparse_grad")),
    F.embedding_bag: _runs(embedding_bag),
    F.scaled_dot_product_attention: _attends,
    F.multi_head_attention_forward: _runs_opened(F.multi_head_attention_forward),
    torch.autograd.grad: _runs_opened(torch.autograd.grad),  # checkpoints run again in it
    torch.autograd.backward: _backward,
    Tensor.backward: _runs_opened(Tensor.backward),
    torch._weight_norm: lambda mode, args, kwargs: weight_norm(*args, **kwargs),
}
_acts: dict[Any, _Acts] = {}
