"""How often a due step waits for a device."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from tests.conftest import blobs

QUESTIONS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero")
MOST = 15  # one of weights, two of weights and loss, two of the step and its charges; ten of what
# has come to the host


def questions(layers: int, losses: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the fourth step, of a loss in so many parts; lists and numbers of host tensors count."""
    torch.manual_seed(0)
    hidden = [m for _ in range(layers) for m in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *hidden, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=1e-3)
    monitor = eq.attach(
        model,
        optimizer,
        probes=[Conservation(growth=1e9)],
        schedule=1,
        budget=None,
        sinks=[MemorySink()],
        on_error="raise",
    )
    loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    lists: list[Tensor] = []
    plain = Tensor.tolist
    for step in range(4):
        optimizer.zero_grad()
        for _ in range(losses):
            (loss(model, blobs()) / losses).backward()
        if step < 3:
            optimizer.step()
    with monkeypatch.context() as patched, profile() as seen:
        patched.setattr(Tensor, "tolist", lambda t: lists.append(t) or plain(t))
        optimizer.step()
    counts = {e.key: e.count for e in seen.key_averages()}
    return sum(counts.get(question, 0) for question in QUESTIONS) + len(lists)


def test_a_due_step_asks_a_device_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes an accelerator wait: as many for a deep model and for many losses as for one."""
    assert questions(1, 1, monkeypatch) == questions(6, 5, monkeypatch) <= MOST
