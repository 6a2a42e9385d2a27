"""A training that may be watched; all that the monitor could change is digested at each step."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.replay.gradient import compare, replayed_gradient
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Measurement, Probe

SURFACES = ("decorator", "loss_fn", "criterion", "model returns its loss")
OFTEN = ("faithful", "equivariance", "conservation")  # the others at every second step
PLACES = ("before the forward", "before the backward", "before the step", "after the step")
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Normalisation, dropout, random numbers of all streams, a counter, and maybe its own loss."""

    def __init__(self, returns_loss: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, 3)
        self.returns_loss, self.calls = returns_loss, 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        logits = self.head(self.features(x))
        return {"loss": F.cross_entropy(logits, y)} if self.returns_loss else logits

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(torch.relu(self.norm(self.hidden(x.flatten(1)))))
        return x * (1 + 0.01 * random.random() + 0.01 * np.random.rand())


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Faithful(Probe):
    """Whether what is measured is what trains: the replayed gradient and the update."""

    name = "faithful"
    headline = "gradient"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        total = sum(float(d.square().sum()) for d in snapshot.update.values())
        yield Measurement("update", total**0.5)
        loss = float(snapshot.training.loss(snapshot.before).detach())
        yield Measurement("loss", loss)
        if snapshot.gradient is not None:
            replayed = replayed_gradient(snapshot.training, snapshot.before)
            found = compare(replayed, snapshot.gradient, snapshot.before)
            yield Measurement("gradient", found.cosine)


@dataclass
class Watch:
    """One run of a training loop, alone (`probes` is None) or watched."""

    probes: list[Any] | None = None
    surface: str = "decorator"
    place: str = "step"  # or one of PLACES, where probe_now() is called
    on_error: Any = "raise"
    trail: list[str] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)  # losses
    sink: MemorySink = field(default_factory=MemorySink)
    monitors: list[Any] = field(default_factory=list)
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    def net(self) -> Any:
        """The network of this surface, from the same seed each time."""
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        return Net(self.surface == "model returns its loss")

    def attach(self, model: nn.Module, optimizer: Any, loss: Any = cross_entropy) -> Any:
        """The loss function for the loop; a monitor sees it where the run is watched."""
        monitor = None
        if self.probes is not None:
            given: dict[str, Any] = {}
            if self.surface == "loss_fn":
                given["loss_fn"] = loss
            if self.surface == "criterion":
                given["criterion"] = self.criterion
            if self.place != "step":
                given |= {"probe_batch": batches(1)[0], "loss_fn": loss, "schedule": 10**6}
            rare = {p.name: 2 for p in self.probes if p.name not in OFTEN}
            given = {"schedule": {p.name: 1 for p in self.probes} | rare} | given
            monitor = eq.attach(
                model, optimizer, probes=self.probes, budget=None, sinks=[self.sink],
                on_error=self.on_error, **given,
            )  # fmt: skip
            self.monitors.append(monitor)
        return self._loss(monitor, loss)

    def _loss(self, monitor: Any, loss: Any) -> Any:
        if self.surface == "decorator" or loss is not cross_entropy:
            return monitor.loss(loss) if monitor else loss
        if self.surface == "criterion":
            return lambda model, batch: self.criterion(model(batch[0]), batch[1])
        if self.surface == "model returns its loss":
            return lambda model, batch: model(batch[0], batch[1])["loss"]

        def observed(model: nn.Module, batch: Batch) -> Tensor:
            if monitor and torch.is_grad_enabled():
                monitor.observe(batch)
            return cross_entropy(model, batch)

        return observed

    def at(self, place: str) -> None:
        """The loop is at this place."""
        if self.place == place:
            for monitor in self.monitors:
                monitor.probe_now()

    def note(self, *things: Any) -> None:
        """Digest everything that could have changed."""
        streams = (torch.get_rng_state(), np.random.get_state(), random.getstate())
        self.trail.append(digest(*things, *streams))

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()

    def values(self, name: str) -> list[float]:
        return [r.value for r in self.sink.records if r.name == name]


def batches(count: int, samples: int = 8) -> list[Batch]:
    """Small images and labels, the same each time; no stream of the training is drawn from."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(samples, 1, 4, 4, generator=generator),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def state(model: nn.Module, *optimizers: Any) -> tuple[Any, ...]:
    """Parameters, buffers, gradients, flags, counters, hooks and optimizer states."""
    return (
        dict(model.state_dict()),
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [getattr(m, "calls", None) for m in model.modules()],
        [o.state_dict() for o in optimizers],
    )


def digest(*things: Any) -> str:
    """Bit pattern of tensors, states and numbers."""
    sha = hashlib.sha256()

    def feed(x: Any) -> None:
        if isinstance(x, Tensor):
            raw = x.detach().contiguous().reshape(-1).view(torch.uint8)
            sha.update(str((x.dtype, tuple(x.shape), x.stride())).encode() + raw.numpy().tobytes())
        elif isinstance(x, dict):
            for key in x:
                feed(key), feed(x[key])
        elif isinstance(x, (list, tuple)):
            for item in x:
                feed(item)
        elif isinstance(x, np.ndarray):
            sha.update(x.tobytes())
        else:
            sha.update(repr(x).encode())

    feed(things)
    return sha.hexdigest()
