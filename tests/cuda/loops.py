"""Trainings that are run with and without a monitor, on any device, and what is left of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink

STEPS = 5
Batch = tuple[Tensor, Tensor]


class Pictures(nn.Module):
    """A convolution with batch statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


class Words(nn.Module):
    """An embedding, one block of attention with dropout, and a head on every token."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(11, 8), nn.Dropout(dropout)
        self.before, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        rows, tokens, width = x.shape
        parts = self.qkv(self.before(x)).view(rows, tokens, 3, 2, width // 2)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.drop(self.out(y.reshape(rows, tokens, width)))
        return self.head(x).transpose(1, 2)


def pictures(device: str, layout: torch.memory_format = torch.contiguous_format) -> list[Batch]:
    """Batches of pictures and classes."""
    rng = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(STEPS, 8, 3, 6, 6, generator=rng),
        torch.randint(4, (STEPS, 8), generator=rng),
    )
    return [(a.to(device, memory_format=layout), b.to(device)) for a, b in zip(x, y, strict=True)]


def words(device: str) -> list[Batch]:
    """Batches of tokens and those that follow."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(11, (STEPS, 4, 7), generator=rng).to(device)
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in x]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training loop: what it is made of, and in which precision it runs."""

    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batches: Callable[[str], list[Batch]] = pictures
    device: str = "cpu"
    autocast: torch.dtype | None = None
    scaled: bool = False  # by a gradient scaler
    called: Callable[[nn.Module], Any] = lambda model: model  # what the loss calls
    around: Callable[[], Any] = nullcontext  # scope of every step, a stream say
    probes: Any = "standard"
    options: dict[str, Any] = field(default_factory=dict)  # of `eq.attach`

    def run(self, attached: bool) -> tuple[list[Tensor], list[Record]]:
        """Everything that a training leaves, and the records of its monitor."""
        torch.manual_seed(0)
        model = self.model().to(self.device)
        optimizer, batches = self.optimizer(model), self.batches(self.device)
        called, sink = self.called(model), MemorySink()
        scaler = torch.amp.GradScaler(self.device, enabled=self.scaled, init_scale=256.0)

        def loss(_: nn.Module, batch: Batch) -> Tensor:
            with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
                return cross_entropy(called, batch)

        with self._monitor(model, optimizer, sink, attached) as monitor:
            step_loss = loss if monitor is None else monitor.loss(loss)
            for batch in batches:
                with self.around():
                    scaler.scale(step_loss(model, batch)).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
        return left(model, optimizer, self.device), sink.records

    @contextmanager
    def _monitor(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sink: MemorySink, attached: bool
    ) -> Iterator[Any]:
        if not attached:
            yield None
            return
        options = {"schedule": 2, "budget": None, "on_error": "raise", **self.options}
        with eq.attach(model, optimizer, probes=self.probes, sinks=[sink], **options) as monitor:
            yield monitor


def left(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> list[Tensor]:
    """Parameters, buffers, the optimizer's tensors and the random state."""
    kept = [*model.parameters(), *model.buffers()]
    kept += [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    random = [torch.get_rng_state()]
    random += [torch.cuda.get_rng_state(device)] if device.startswith("cuda") else []
    return [x.detach().clone() for x in (*kept, *random)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two trainings left the very same, to the last bit."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
