"""Dead units: told by what flows through them, over several batches, with their layer and share."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights.orbit.activity import Activity

Batch = tuple[Tensor, Tensor]


def trained(
    model: nn.Module, batches: Iterable[Batch], lr: float = 0.0, run_dir: object = None
) -> list[Record]:
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=lr), MemorySink()
    criterion = nn.CrossEntropyLoss()
    probe = Discrete(laws=False, pairs=0)
    with eq.attach(
        model, optimizer, criterion=criterion, probes=[probe], budget=None, sinks=[sink],
        on_error="raise", run_dir=run_dir,
    ):  # fmt: skip
        for x, y in batches:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return sink.records


def dead(records: list[Record]) -> list[tuple[float, str]]:
    return [(r.value, r.status) for r in records if r.name == "discrete/dead"]


def vectors(count: int, samples: int = 32) -> list[Batch]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(samples, 8, generator=rng), torch.randint(0, 3, (samples,), generator=rng))
        for _ in range(count)
    ]


def mlp(activation: Callable[[], nn.Module], shift: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 10), activation(), nn.Linear(10, 12), activation(), nn.Linear(12, 3)
    )
    with torch.no_grad():
        model[2].bias -= shift
    return model


@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.ReLU6, nn.Hardswish, nn.ELU, nn.Mish]
)
def test_a_wholly_dead_layer_reports_all_its_units_and_its_neighbours_none(
    activation: Callable[[], nn.Module],
) -> None:
    records = trained(mlp(activation, 60.0), vectors(3))
    saturates = activation is nn.ELU  # to -1: it passes a constant, which is no silence
    assert dead(records)[-1] == (0.0 if saturates else 12.0, "ok")
    shares = {
        r.name.split("/")[-1]: r.value for r in records if r.name.startswith("discrete/dead_")
    }
    assert shares == ({} if saturates else {"2-4": 1.0})
    alive = trained(mlp(activation, 0.0), vectors(3))
    assert dead(alive)[-1][0] < 12


def test_dead_channels_and_feed_forward_units_are_found_behind_norms_and_views() -> None:
    torch.manual_seed(0)
    convolutional = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    with torch.no_grad():
        convolutional[1].bias -= 50.0
        convolutional[3].bias[2] -= 50.0
    rng = torch.Generator().manual_seed(1)
    images = [
        (torch.randn(16, 1, 6, 6, generator=rng), torch.randint(0, 3, (16,), generator=rng))
        for _ in range(3)
    ]
    records = trained(convolutional, images)
    shares = {r.name.split("/")[-1]: r.value for r in records if "dead_share" in r.name}
    assert shares["0-3"] == 1.0 and shares["3-6"] >= 0.2

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x[:, None].expand(-1, 4, -1)).mean(1))

    block = Block()
    with torch.no_grad():
        block.inner.linear1.bias -= 50.0
    (share,) = {r.value for r in trained(block, vectors(3)) if "dead_share" in r.name}
    assert share == 1.0


def test_a_unit_silent_on_one_batch_is_not_dead_and_one_silent_on_all_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
        model[0].weight[0, 0] = 1.0  # active where the first feature is positive
        model[0].bias[3] -= 100.0
    batches = vectors(7)
    for k in (1, 3, 4, 5, 6):
        batches[k][0][:, 0] = -1.0
    found = dead(trained(model, batches))
    assert found[0] == (1.0, "not_converged")  # one batch tells nothing of what is silent on it
    assert found[1] == (2.0, "not_converged")
    assert found[2:6] == [(1.0, "ok")] * 4  # one silent now for no more than three batches
    assert found[6] == (1.0, "ok")
    later = dead(trained(model, [*batches, batches[6]]))
    assert later[-1] == (2.0, "ok")


def test_samples_one_by_one_are_too_few_until_there_are_thirty() -> None:
    model = mlp(nn.ReLU, 60.0)
    found = dead(trained(model, vectors(31, samples=1)))
    assert {status for _, status in found[:29]} == {"not_converged"}
    assert found[-1] == (12.0, "ok")


def test_a_head_that_starts_at_zero_kills_nothing() -> None:
    model = mlp(nn.Tanh, 0.0)
    nn.init.zeros_(model[4].weight)
    found = dead(trained(model, vectors(4), lr=0.1))
    assert found[0] == (12.0, "not_converged") and found[-1] == (0.0, "ok")


def test_the_report_names_layer_share_and_batches(tmp_path: object) -> None:
    trained(mlp(nn.ReLU, 60.0), vectors(4), run_dir=f"{tmp_path}/dead")
    alarm, *_ = found = Run(f"{tmp_path}/dead").findings()
    assert (alarm.level, alarm.id) == ("alarm", "dead-layer")
    (finding,) = [f for f in found if f.id == "dead-units"]
    assert "12 of 12 units on 4 batches in a row, 128 samples" in finding.text
    assert "Nothing passes 2-4" in finding.text
    trained(mlp(nn.ReLU, 60.0), vectors(2), run_dir=f"{tmp_path}/early")
    (finding,) = [f for f in Run(f"{tmp_path}/early").findings() if "did nothing" in f.text]
    assert finding.level == "note" and "too few to call them dead" in finding.text


def test_activity_is_what_products_are_given_and_give_whatever_the_view() -> None:
    rng = torch.Generator().manual_seed(0)
    w, k = torch.randn(4, 3, generator=rng), torch.randn(5, 2, 3, 3, generator=rng)
    x, image = torch.randn(7, 2, 3, generator=rng), torch.randn(2, 2, 6, 6, generator=rng)
    made: dict[str, Tensor] = {}
    q, v = torch.randn(4, 3, generator=rng), torch.randn(3, generator=rng)

    def run() -> None:
        made["w"] = x @ w.T
        made["k"] = torch.conv2d(image, k)
        made["q"] = q @ v
        torch.zeros(0, 3) @ w.T  # an empty batch adds nothing

    seen = Activity.of(run, {"w": w, "k": k, "q": q})
    torch.testing.assert_close(seen.read["q", 1].float(), v.abs())
    torch.testing.assert_close(seen.made["q", 0].float(), made["q"].abs())
    for found, expected in (
        (seen.read["w", 1], x.flatten(0, 1).abs().amax(0)),
        (seen.made["w", 0], made["w"].flatten(0, 1).abs().amax(0)),
        (seen.read["k", 1], image.abs().amax((0, 2, 3))),
        (seen.made["k", 0], made["k"].abs().amax((0, 2, 3))),
    ):
        torch.testing.assert_close(found.float(), expected)
