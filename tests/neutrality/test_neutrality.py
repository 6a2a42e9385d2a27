"""The one law above all: training with the monitor is bit-identical to training without."""

import copy
import hashlib
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eqtoolbox as eq
from eqtoolbox.attach.config import resolve
from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.learned import LearnedAlgebra
from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.scaling import Degree
from eqtoolbox.symmetry.groups import Scalings
from eqtoolbox.watch.probe import Measurement, Probe

STEPS = 8


class Net(nn.Module):
    """Convolution, batch normalisation, dropout, a frozen part, random numbers of all streams."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.frozen = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.drop = nn.Dropout(0.3)
        self.hidden = nn.Linear(6 * 4 * 4, 12)
        self.turn = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12))
        self.last = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)
        self.calls = 0
        for p in self.frozen.parameters():
            p.requires_grad_(False)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.max_pool2d(x + self.frozen(x), 2)
        x = self.drop(torch.relu(self.hidden(x.flatten(1))))
        x = x * (1 + 0.01 * random.random() + 0.01 * np.random.rand())
        return self.head(torch.relu(self.last(torch.relu(self.turn(x)))))


class Raising(Probe):
    name = "raising"
    headline = "nothing"
    mode = "train"

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        torch.rand(3), random.random(), np.random.rand()
        snapshot.objective.model.eval()
        snapshot.objective.model.calls = 99
        raise RuntimeError("on purpose")
        yield


def digest(*things: Any) -> str:
    """Bit pattern of tensors, states and numbers."""
    sha = hashlib.sha256()

    def feed(x: Any) -> None:
        if isinstance(x, Tensor):
            sha.update(str((x.dtype, tuple(x.shape))).encode() + x.detach().numpy().tobytes())
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


def train(
    attach: Callable[..., Any] | None,
    optimizer_class: Any = torch.optim.Adam,
    between: Callable[..., Any] | None = None,
) -> list[str]:
    """Digest of everything after each step; `attach(model, optimizer)` may watch.

    Without a monitor, `between(None, model)` is called all the same.
    """
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    data = TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,)))
    model = Net()
    model.train()
    model.frozen.eval()
    options = {"lr": 1e-2, "weight_decay": 1e-2}
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], **options)
    fired: list[str] = []
    model.conv.register_forward_hook(lambda *_: fired.append("forward"))
    model.head.register_full_backward_hook(lambda *_: fired.append("backward"))
    model.head.weight.register_hook(lambda g: fired.append("tensor"))
    loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    monitor = attach(model, optimizer) if attach else None
    if monitor:
        loss_fn = monitor.loss(loss_fn)
    trail, step = [], 0
    while step < STEPS:
        for batch in DataLoader(data, batch_size=16, shuffle=True):
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            if between is not None:
                between(monitor, model)
            grads = [p.grad for p in model.parameters()]
            trail.append(
                digest(
                    loss, model.state_dict(), optimizer.state_dict(), grads, model.calls, fired,
                    [m.training for m in model.modules()], torch.get_rng_state(),
                    np.random.get_state(), random.getstate(),
                )
            )  # fmt: skip
            optimizer.zero_grad()
            step += 1
    if monitor:
        monitor.close()
    assert bool(model._forward_hooks) is False
    assert bool(model._forward_pre_hooks) is False
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert len(model.conv._forward_hooks) == 1, "the user's own hook stays"
    return trail


@pytest.fixture(scope="module")
def alone() -> list[str]:
    torch.set_num_threads(1)
    return train(None)


def test_training_itself_is_repeatable(alone: list[str]) -> None:
    assert train(None) == alone


def test_the_digest_sees_one_stray_random_number(alone: list[str]) -> None:
    def disturbing(model: nn.Module, optimizer: Any) -> Any:
        torch.rand(1)
        return None

    assert train(disturbing) != alone


@pytest.mark.parametrize(("name", "schedule"), [("light", 1), ("standard", 4), ("full", 5)])
def test_training_is_bit_identical_with_every_preset(
    alone: list[str], name: str, schedule: int
) -> None:
    sink = eq_memory()

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(
            model, optimizer, probes=name, schedule=schedule, budget=None, sinks=[sink],
            on_error="raise",
        )  # fmt: skip

    assert train(attach) == alone
    measured = {r.name.split("/")[0] for r in sink.records if r.status in ("ok", "not_converged")}
    assert {"equivariance", "conservation"} <= measured
    assert name == "light" or {"noether", "discrete", "curvature"} <= measured
    at_the_end = ("cost/overhead", "cost/samples_per_second", "cost/step_time", "vital/losses")
    measured_at = {r.step for r in sink.records if r.name not in at_the_end}
    assert measured_at == set(range(0, STEPS, schedule))


def test_training_is_bit_identical_with_every_option_of_the_data_symmetries(
    alone: list[str],
) -> None:
    scaled = Equivariance(Scalings(whole=False), Degree(1), trivial, name="scaled")
    claims = ("cyclic4", scaled)
    probes = [
        EquivarianceError(symmetries=claims, shadow=True, locate=True, layers=True),
        Asymmetry(symmetries=claims),
        LearnedAlgebra(),
    ]
    sink = eq_memory()

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(
            model, optimizer, probes=probes, budget=None, sinks=[sink], on_error="raise"
        )

    assert train(attach) == alone
    measured = {r.name.rsplit("/", 1)[0] for r in sink.records if r.status == "ok"}
    assert {"equivariance/layer_share/scaled.0", "asymmetry/rayleigh"} <= measured


def test_training_is_bit_identical_when_a_probe_raises(alone: list[str]) -> None:
    sink = eq_memory()

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(model, optimizer, probes=[Raising()], budget=None, sinks=[sink])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(attach) == alone
    failed = [r for r in sink.records if r.status == "failed"]
    assert len(failed) == 3, "disabled after three failures"
    assert "on purpose" in failed[0].note


def test_training_is_bit_identical_with_a_budget_and_sparse_probes(alone: list[str]) -> None:
    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        return eq.attach(model, optimizer, schedule=eq.every(3, offset=1), budget=0.05)

    assert train(attach) == alone


def test_training_is_bit_identical_inside_no_grad_and_inference_hooks(alone: list[str]) -> None:
    """A monitor that measures on a fixed batch, with a criterion it watches itself."""

    def attach(model: nn.Module, optimizer: Any) -> eq.Monitor:
        torch_state = torch.get_rng_state()
        batch = (torch.randn(4, 1, 8, 8, generator=torch.Generator()), torch.tensor([0, 1, 2, 0]))
        assert torch.equal(torch_state, torch.get_rng_state())
        return eq.attach(model, optimizer, probe_batch=batch, schedule=4, budget=None)

    assert train(attach) == alone


def test_copies_and_pickles_of_a_watched_model_are_the_model_alone() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, criterion=nn.MSELoss(), schedule=1, budget=None):
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        copy.deepcopy(optimizer), pickle.dumps(optimizer)
    for other in (twin, again):
        other(torch.ones(1, 3))
        assert all(
            torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True)
        )


def test_no_reference_to_batch_or_graph_is_kept_between_steps() -> None:
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, schedule=1, budget=None) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        batch = (torch.randn(8, 3), torch.randint(0, 2, (8,)))
        watched = weakref.ref(batch[0])
        loss_fn(model, batch).backward()
        optimizer.step()
        del batch
        gc.collect()
        assert watched() is None


def eq_memory() -> Any:
    from eqtoolbox.sinks.memory import MemorySink

    return MemorySink()


def test_standard_resolves_to_all_questions() -> None:
    assert {s.probe.name for s in resolve("standard")} == {
        "equivariance", "conservation", "noether", "discrete", "curvature",
    }  # fmt: skip


def test_a_probe_that_draws_moves_no_stream_while_other_threads_live(alone: list[str]) -> None:
    """As progress bars and loaders have them."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watched = train(lambda m, o: eq.attach(m, o, probes=[Raising()], budget=None))
    finally:
        done.set()
        other.join()
    assert watched == alone
