"""Nothing of a step outlives it: no batch, no graph, no tensor, with the collector switched off."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.watch.probe import Measurement, Probe
from tests.conftest import mlp
from tests.neutrality.table import PROBES, make
from tests.neutrality.watch import Net, batches, cross_entropy


class Gradient(Probe):
    """Builds a graph of the loss and its gradient."""

    name = "gradient"
    headline = "norm"
    mode = "train"
    keep: Any = None

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        leaves = {n: p.clone().requires_grad_() for n, p in snapshot.before.items()}
        loss = snapshot.objective.loss(leaves)
        rows = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        if self.keep is not None:
            self.keep.append(rows)
        yield Measurement("norm", sum(r.detach().square().sum() for r in rows).sqrt())


def tensors() -> int:
    """Bytes of all tensors that are alive."""
    seen = {}
    for x in gc.get_objects():
        if issubclass(type(x), Tensor) and not issubclass(type(x), FakeTensor):  # of a compiler
            with contextlib.suppress(RuntimeError):  # tensors without memory
                storage = x.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def watched_steps(steps: int, probe: Probe) -> tuple[list[int], list[Any]]:
    """Bytes alive after steps 100, 200, ...; weak references to all batches."""
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    refs, alive = [], []
    with eq.attach(
        model,
        optimizer,
        probes=[probe, Conservation()],
        budget=None,
        schedule={"gradient": 5, "conservation": 50},
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        gc.collect()
        gc.disable()
        try:
            for step in range(1, steps + 1):
                x = torch.randn(16, 6, generator=generator)
                for part in x.chunk(2):
                    part = part.clone()
                    refs.append(weakref.ref(part))
                    loss = loss_fn(model, (part, torch.zeros(8, dtype=torch.long))) / 2
                    loss.backward()
                    del loss, part
                optimizer.step()
                optimizer.zero_grad()
                if step in (100, steps):
                    alive.append(tensors())
        finally:
            gc.enable()
    return alive, refs


def test_no_batch_and_no_graph_is_left_after_500_steps_without_the_collector() -> None:
    alive, refs = watched_steps(500, Gradient())
    assert not [r for r in refs if r() is not None]
    assert alive[0] == alive[-1]


def test_a_probe_that_keeps_its_graph_is_found_out() -> None:
    leaking = Gradient()
    leaking.keep = []
    alive, _ = watched_steps(150, leaking)
    assert alive[-1] > alive[0]


@pytest.mark.parametrize("name", PROBES)
def test_memory_is_back_to_where_it_was_after_each_probe(name: str) -> None:
    """All that stays is what the probe is to remember, and that does not grow."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    alive = []
    with eq.attach(
        model, optimizer, probes=make((name,)), schedule=2, budget=None, on_error="raise"
    ) as monitor:
        loss_fn = monitor.loss(cross_entropy)
        for step, batch in enumerate(batches(5)):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            if step == 2:
                gc.collect()
                gc.disable()
            optimizer.step()
            del loss
            if step in (2, 4):  # the first measurement left its references
                alive.append(tensors())
        gc.enable()
    assert alive[0] == alive[1]


def test_copies_pickles_and_averages_are_free_of_the_monitor(tmp_path: Any) -> None:
    import copy
    import io
    import pickle

    torch.manual_seed(0)
    model = Net(returns_loss=True)
    optimizer = torch.optim.Adam(model.parameters())

    def saved(thing: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    before = pickle.dumps(optimizer), saved(model.state_dict()), saved(optimizer.state_dict())
    with eq.attach(model, optimizer, schedule=1, budget=None, run_dir=tmp_path / "run") as monitor:
        twin = copy.deepcopy(model)
        whole = torch.load(io.BytesIO(saved(model)), weights_only=False)
        average = torch.optim.swa_utils.AveragedModel(model)
        during = pickle.dumps(optimizer), saved(model.state_dict()), saved(optimizer.state_dict())
        pickle.loads(during[0])
        assert copy.deepcopy(optimizer).state_dict() == optimizer.state_dict()
        for other in (twin, whole, average):
            other(*batches(1)[0])
        assert monitor._capture.pending.coming == []
    assert during[1:] == before[1:]
    assert len(during[0]) == len(before[0])


def test_a_monitor_that_nobody_keeps_dies_with_its_optimizer() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = weakref.ref(eq.attach(model, optimizer))
    assert monitor() is not None
    del optimizer
    gc.collect()
    assert monitor() is None
    model(torch.ones(1, 2))
