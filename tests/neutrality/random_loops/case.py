"""Case: a training loop with its model, drawn from a seed; equal seeds give equal loops."""

import random
from dataclasses import dataclass, fields

from tests.neutrality.random_loops import (
    containers,
    functions,
    layers,
    objects,
    stateful_losses,
    streams,
    teachers,
    tensors,
)
from tests.neutrality.random_loops.data import LOADERS
from tests.neutrality.random_loops.hooks import HOOKS, OF_THE_PROCESS
from tests.neutrality.random_loops.losses import LOSSES, Loss
from tests.neutrality.random_loops.optimizers import (
    CLOSURES,
    FUSED,
    OPTIMIZERS,
    SCHEDULERS,
    SINGLE,
)
from tests.neutrality.random_loops.piece import PIECES, Piece
from tests.neutrality.table import PROBES
from tests.neutrality.watch import PLACES

FILLED = (containers, functions, layers, objects, streams, tensors, stateful_losses, teachers)
SURFACES = ("decorator", "criterion", "loss_fn", "model returns its loss")
STEMS = ("flat", "convolution", "embedding")
CHEAP = (("conservation",), ("conservation", "equivariance"), ("curvature",), ("spectrum",))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One loop. The defaults are the plainest one."""

    seed: int = 0
    stem: str = "flat"
    body: tuple[str, ...] = ("linear", "relu")  # names in PIECES
    loss: str = "function"  # name in LOSSES
    surface: str = "decorator"
    optimizer: str = "sgd"
    options: tuple[tuple[str, object], ...] = ()  # of the optimizer
    groups: bool = False
    accumulation: int = 1
    loader: str = "list"
    augmented: bool = False
    autocast: bool = False
    scaler: bool = False
    double: bool = False
    clip: str = ""
    scheduler: str = ""
    hooks: tuple[str, ...] = ()
    average: bool = False
    evaluates: bool = False
    deterministic: bool = False
    anomaly: bool = False
    set_to_none: bool = True
    compiled: bool = False
    probes: tuple[str, ...] | str = ("conservation",)
    every: int = 1
    probe_batch: bool = False
    probe_now: str = ""
    threads: tuple[bool, ...] = ()  # loops side by side, and which of them are watched

    @classmethod
    def of(cls, seed: int) -> "Case":
        """The case of this seed; what cannot go together is never drawn together."""
        r = random.Random(seed)
        threads = r.choice(((True, True), (True, False), (True, True, True, False)))
        threads = threads if r.random() < 0.1 else ()
        where = r.choice(("model", "loss", "both")) if r.random() < 0.5 else ""
        drawn = _process(r, bool(threads)) | {"seed": seed, "threads": threads}
        drawn |= _model(r, where in ("model", "both"), bool(threads))
        drawn |= _loss(r, drawn, where in ("loss", "both"), bool(threads))
        drawn |= _optimizer(r)
        pieces = [PIECES[name] for name in drawn["body"]]
        drawn["average"] = r.random() < 0.25 and all(p.copies for p in pieces)
        drawn["compiled"] = not where and not threads and r.random() < 0.04
        return cls(**drawn | _watch(r, drawn))

    @property
    def parts(self) -> list[Piece | Loss]:
        return [*(PIECES[name] for name in self.body), LOSSES[self.loss]]

    @property
    def remembers(self) -> bool:
        """Whether some Python state is fed back into the training."""
        return any(part.remembers for part in self.parts)

    @property
    def kind(self) -> str:
        """What is hard about it."""
        state = "Python state" if self.remembers else "ordinary"
        return f"{state}, threads" if self.threads else state

    def describe(self) -> str:
        """Whatever is not as in the plainest case."""
        said = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" or value != field.default:
                said.append(f"{field.name}={value!r}")
        return ", ".join(said)


def _process(r: random.Random, threads: bool) -> dict[str, object]:
    """What belongs to the loop and to the process around it."""
    hooks = [h for h in HOOKS if not (threads and h in OF_THE_PROCESS)]
    loader = r.choices(LOADERS, (50, 38, 10, 1))[0]
    return {
        "loader": "list" if threads else loader,
        "augmented": not threads and r.random() < 0.4,
        "accumulation": r.choice((1, 1, 2, 3)),
        "double": r.random() < 0.1,
        "clip": r.choice(("", "", "norm", "value")),
        "hooks": tuple(r.sample(hooks, r.randint(1, 5))) if r.random() < 0.5 else (),
        "evaluates": r.random() < 0.3,
        "deterministic": not threads and r.random() < 0.2,
        "anomaly": not threads and r.random() < 0.05,
        "set_to_none": r.random() < 0.7,
    }


def _model(r: random.Random, remembers: bool, threads: bool) -> dict[str, object]:
    allowed = {n: p for n, p in PIECES.items() if not (threads and (p.draws or p.shared))}
    plain = [name for name, p in allowed.items() if not p.remembers]
    body = [r.choice(plain) for _ in range(r.randint(1, 4))]
    if remembers:
        body += [r.choice([n for n in allowed if n not in plain]) for _ in range(r.randint(1, 2))]
        r.shuffle(body)
    return {"stem": r.choice(STEMS), "body": tuple(body)}


def _loss(r: random.Random, drawn: dict, remembers: bool, threads: bool) -> dict[str, object]:
    copies = all(PIECES[name].copies for name in drawn["body"])
    names = [
        name
        for name, known in LOSSES.items()
        if known.remembers == remembers
        and not (known.copies and not copies)
        and not (threads and (known.draws or known.shared))
    ]
    name = r.choice(names)
    surfaces = SURFACES if LOSSES[name].criterion else ("decorator", "loss_fn")
    return {"loss": name, "surface": r.choice(surfaces)}


def _optimizer(r: random.Random) -> dict[str, object]:
    name = r.choice(OPTIMIZERS)
    options: dict[str, object] = {}
    if name in SINGLE and r.random() < 0.5:
        options["weight_decay"] = 0.01
    if name in SINGLE and r.random() < 0.6:
        kinds = ["foreach", "no foreach", *(["fused"] * (name in FUSED))]
        kind = r.choice(kinds)
        options |= {"fused": True} if kind == "fused" else {"foreach": kind == "foreach"}
    scheduled = name in SINGLE and r.random() < 0.5
    drawn: dict[str, object] = {
        "optimizer": name,
        "options": tuple(options.items()),
        "groups": name in SINGLE and r.random() < 0.3,
        "scheduler": r.choice(list(SCHEDULERS)) if scheduled else "",
        "scaler": name not in CLOSURES and r.random() < 0.2,
        "autocast": r.random() < 0.25,
    }
    return drawn | ({"accumulation": 1} if name in CLOSURES else {})


def _watch(r: random.Random, drawn: dict) -> dict[str, object]:
    """How the loop is watched."""
    kinds = [CHEAP[0], CHEAP[1], r.choice(CHEAP), (r.choice(list(PROBES)),), "light", "standard"]
    now = r.random() < 0.15
    return {
        "probes": r.choices(kinds, (30, 20, 25, 15, 8, 2))[0],
        "every": r.choice((1, 1, 2)),
        "probe_now": r.choice(PLACES) if now else "",
        "probe_batch": now or r.random() < 0.1,
    }
