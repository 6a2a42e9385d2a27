"""The state of optimizers: what a motion of the parameters makes of it, kind by kind.

The rule: what the state would be had all gradients so far been (DT)^-T g. Of a momentum that is
(DT)^-T m, of second moments the elementwise square of (DT)^-T; a sum of normalised gradients
u = g / sqrt(v) is taken apart and put together, (DT)^-T (u sqrt(v)) / sqrt(v'), which a positive
diagonal T leaves as it is; averaged parameters move as parameters do.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eqtoolbox.act.motion import Motion
from eqtoolbox.act.write import MISSING, Into, Keyed, Write
from eqtoolbox.weights.forms.stack import Parameters

# sum of gradients; of squares; largest size; sum of g / sqrt(v); of its squares; one step's length
Kind = Literal["gradient", "square", "largest", "update", "squared update", "length", "parameter"]
_ADAM: dict[str, Kind] = {
    "exp_avg": "gradient",
    "exp_avg_sq": "square",
    "max_exp_avg_sq": "square",
}
KINDS: dict[str, dict[str, Kind]] = {
    "SGD": {"momentum_buffer": "gradient"},
    "Muon": {"momentum_buffer": "gradient"},
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "SparseAdam"), _ADAM),
    "Adamax": {"exp_avg": "gradient", "exp_inf": "largest"},
    "Adagrad": {"sum": "square"},
    "RMSprop": {"square_avg": "square", "grad_avg": "gradient", "momentum_buffer": "update"},
    "Adadelta": {"square_avg": "square", "acc_delta": "squared update"},
    "ASGD": {"ax": "parameter"},
    "Rprop": {"prev": "gradient", "step_size": "length"},
}


def moved_state(
    optimizer: Optimizer, motion: Motion, params: Mapping[str, nn.Parameter], at: Parameters
) -> Iterator[Write]:
    """What has to be written so that the optimizer's state goes along with the parameters.

    Args:
        optimizer: of which some parameters may be the model's.
        motion: of the parameters.
        params: of the model, by name.
        at: their values before, float64.

    Raises:
        TypeError: state of which it is not known how it goes along.
        ValueError: parameters that change places are optimized in different ways.
    """
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    own = [n for n in motion.names if id(params[n]) in group_of]
    held: dict[str, MutableMapping[str, Any]] = {
        n: optimizer.state[params[n]] for n in own if params[n] in optimizer.state
    }
    kinds = _kinds(optimizer)
    if own:
        _refuse_unknown(optimizer, kinds, params)
    _refuse_places(motion.places, {n: group_of.get(id(p)) for n, p in params.items()})
    for name in own:
        if name not in held and motion.places.get(name) in held:
            held[name] = {}
            yield Keyed(optimizer.state, params[name], held[name])
    for key, kind in kinds.items():
        given = {n: s[key] for n, s in held.items() if isinstance(s.get(key), Tensor)}
        if given:
            divisor = {n: s["square_avg"] for n, s in held.items() if "square_avg" in s}
            new = _moved(kind, motion, at, given, divisor)
            for name in own:
                source = motion.places.get(name, name)
                if source in given or name in given:
                    value = new[name] if source in given else None
                    yield _tensor(held[name], key, value, given.get(source))
    for name, source in motion.places.items():
        for key in (held.get(name, {}).keys() | held.get(source, {}).keys()) - kinds.keys():
            value = held.get(source, {}).get(key, MISSING)
            value = value.clone() if isinstance(value, Tensor) else value
            yield Keyed(held[name], key, value)


def _moved(
    kind: Kind, motion: Motion, at: Parameters, given: Parameters, divisor: Parameters
) -> dict[str, Tensor]:
    """The state of this kind after the motion, of all its names; zero where there is none."""

    def whole(tensors: Parameters) -> dict[str, Tensor]:
        return {
            n: tensors[n].detach().to(at[n]) if n in tensors else torch.zeros_like(at[n])
            for n in motion.names
        }

    own = whole(given)
    if kind == "gradient":
        return {**own, **motion.cotangent(at, own)}
    if kind == "square":
        return {**own, **motion.squared(at, own)}
    if kind == "largest":
        squares = motion.squared(at, {n: x.square() for n, x in own.items()})
        return {n: x.sqrt() for n, x in squares.items()}
    if kind == "parameter":
        return {**own, **motion.moved({n: own[n] if n in given else at[n] for n in own})}
    if kind == "length":
        if not motion.monomial:
            raise TypeError(
                "Rprop's step sizes belong to single weights: there are none for mixed ones; "
                "act before its first step, or leave out families that mix weights"
            )
        ones = {n: torch.ones_like(x) for n, x in own.items()}
        return _divided(motion.squared(at, own), motion.squared(at, ones))
    before = whole(divisor)
    after = motion.squared(at, before)
    if kind == "squared update":
        return _divided(motion.squared(at, _times(own, before)), after)
    roots = {n: x.sqrt() for n, x in before.items()}
    moved = motion.cotangent(at, _times(own, roots))
    return _divided(moved, {n: x.sqrt() for n, x in after.items()})


def _times(a: Parameters, b: Parameters) -> dict[str, Tensor]:
    return {n: x * b[n] for n, x in a.items()}


def _divided(a: Parameters, b: Parameters) -> dict[str, Tensor]:
    """a / b, zero where b is: there was no gradient."""
    return {n: torch.where(b[n] > 0, x / b[n], 0.0) for n, x in a.items()}


def _tensor(
    state: MutableMapping[str, Any], key: str, new: Tensor | None, like: Tensor | None
) -> Write:
    """The new value in place, or an entry made or taken out where another's place is taken."""
    old = state.get(key)
    if new is None or like is None:
        return Keyed(state, key, MISSING)
    if isinstance(old, Tensor):
        return Into(old, new)
    return Keyed(state, key, torch.empty_like(like).copy_(new))


def _kinds(optimizer: Optimizer) -> dict[str, Kind]:
    """What its state is made of, empty if that is not known."""
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("torch.optim") and kind.__name__ in KINDS:
            return KINDS[kind.__name__]
    return {}


def _refuse_unknown(
    optimizer: Optimizer, kinds: Mapping[str, Kind], params: Mapping[str, nn.Parameter]
) -> None:
    names = {id(p): n for n, p in params.items()}
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                own = value.shape == param.shape if key in kinds else value.dim() == 0
                if own and (kinds or key == "step"):
                    continue
            elif value is None or isinstance(value, (bool, int, float, str)):
                continue
            raise TypeError(
                f"{type(optimizer).__name__} keeps {key!r} of {names.get(id(param), 'a tensor')}, "
                f"of which it is not known how it goes along; known are {', '.join(sorted(KINDS))}:"
                " act before the first step, or clear the state"
            )


def _refuse_places(places: Mapping[str, str], groups: Mapping[str, Any]) -> None:
    """Parameters that change places must be optimized alike."""

    def told(group: Any) -> Any:
        return None if group is None else {k: v for k, v in group.items() if k != "params"}

    for name, source in places.items():
        if told(groups[name]) != told(groups[source]):
            raise ValueError(
                f"{name} takes the place of {source}, which is optimized in another way: give "
                "both to one optimizer with the same settings"
            )


def refuse_other_models(
    optimizers: Iterable[Optimizer], params: Mapping[str, nn.Parameter]
) -> None:
    """An optimizer without any of the model's parameters was given by mistake.

    Raises:
        ValueError: names it.
    """
    own = set(map(id, params.values()))
    for optimizer in optimizers:
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"expected an optimizer of the model's parameters, got {type(optimizer).__name__} "
                "of others: make it of model.parameters()"
            )
