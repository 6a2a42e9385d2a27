"""One replayed gradient a step: whoever asks for that of the same loss at theta_t gets the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.noether import Noether
from eqtoolbox.replay.objective import Objective
from eqtoolbox.replay.streams import RandomState
from eqtoolbox.replay.window import Window
from eqtoolbox.watch import snapshot as snapshots
from eqtoolbox.watch.snapshot import Snapshot
from tests.conftest import blobs, mlp


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Objective]:
    """The losses whose gradients snapshots replayed."""
    found: list[Objective] = []
    real = snapshots.replayed_gradient

    def noted(objective: Objective, *rest: Any) -> Any:
        found.append(objective)
        return real(objective, *rest)

    monkeypatch.setattr(snapshots, "replayed_gradient", noted)
    return found


def taken(**options: Any) -> Snapshot:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    objective = Objective(
        model=model,
        loss_fn=cross_entropy,
        batch=blobs(),
        random=RandomState(),
        buffers={},
        flags=tuple(m.training for m in model.modules()),
    )
    return Snapshot(
        **{
            "step": 0,
            "before": {n: p.detach().clone() for n, p in model.named_parameters()},
            "after": None,
            "gradient": None,
            "groups": (),
            "optimizer": "SGD",
            "state": {},
            "training": objective,
            "measured": objective,
            **options,
        }
    )


def first_step() -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probes = [Conservation(), Noether(), Discrete(laws=False)]
    with eq.attach(
        model, optimizer, probes=probes, schedule=1, budget=None, sinks=[], on_error="raise"
    ) as monitor:
        monitor.loss(cross_entropy)(model, blobs()).backward()
        optimizer.step()


def test_the_check_of_the_gradient_and_the_probes_share_one(replays: list[Objective]) -> None:
    first_step()
    assert len(replays) == 1


def test_without_sharing_it_is_replayed_again(
    replays: list[Objective], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr(snapshots, "_same", lambda one, other: False)
    first_step()
    assert len(replays) > 1


def test_the_same_loss_is_shared_though_it_is_another_object(replays: list[Objective]) -> None:
    snapshot = taken()
    loss = snapshot.training
    assert loss is not None
    once = snapshot.slope(loss)
    assert snapshot.slope(replace(loss)) is once
    assert replace(snapshot, step=0).slope(loss) is once
    apart = snapshot.slope(loss.unmixed())
    assert apart is not once
    assert snapshot.slope(loss.unmixed()) is apart  # made anew each time
    assert len(replays) == 2


@pytest.mark.parametrize("other", ["halved", "float64", "function", "point", "scale", "window"])
def test_what_is_another_gradient_is_not_shared(other: str, replays: list[Objective]) -> None:
    snapshot = taken()
    loss = snapshot.training
    assert loss is not None
    once, scale = snapshot.slope(loss), 1.0
    if other == "halved":
        loss = loss.halved()
    elif other == "float64":
        loss = loss.to(torch.float64)
    elif other == "function":
        loss = replace(loss, loss_fn=lambda m, b: 2 * cross_entropy(m, b))
    elif other == "point":
        snapshot = replace(snapshot, before={n: 2 * p for n, p in snapshot.before.items()})
    elif other == "scale":
        scale = 1024.0
    else:
        loss = Window.of(((loss, 0.5),))
    found = snapshot.slope(loss, scale)
    assert found is not once
    assert len(replays) == 2
    same = all(torch.allclose(found[n].float(), g, rtol=1e-5) for n, g in once.items())
    assert same == (other in ("float64", "scale"))


def test_windows_of_the_same_losses_are_shared(replays: list[Objective]) -> None:
    snapshot = taken()
    loss = snapshot.training
    assert loss is not None
    window = Window.of(((loss, 0.5), (loss.halved(), 0.5)))
    once = snapshot.slope(window.unmixed())
    assert snapshot.slope(window.unmixed()) is once
    assert snapshot.slope(Window.of(((loss, 0.5), (loss, 0.5))).unmixed()) is not once
    assert len(replays) == 2
