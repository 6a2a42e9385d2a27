"""A tracker shows what it holds and does nothing; other stand-ins refuse by name."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.reach.standin import Silent, StandIn
from eqtoolbox.replay.thread.scope import LeavesTrace
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.belongings import Batch, Net, cross_entropy
from tests.neutrality.test_python_state import trained


class Config:
    """As a tracker keeps what a run was started with."""

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __contains__(self, name: str) -> bool:
        return name in vars(self)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def keys(self) -> Any:
        return vars(self).keys()

    def get(self, name: str, other: Any = None) -> Any:
        return vars(self).get(name, other)


class Run:
    """A tracker's run."""

    def __init__(self) -> None:
        self.config = Config(alpha=0.5, widths=[1, 2], note={"b": 0.25})
        self.step, self.scale, self.lines = 3, lambda x: x * 2, []

    def log(self, numbers: Any) -> None:
        self.lines.append(numbers)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        self.lines.append("over")

    def __setitem__(self, name: str, value: Any) -> None:
        self.lines.append(name)

    def __call__(self) -> None:
        self.lines.append("called")


for kind in (Config, Run):
    kind.__module__ = "wandb.sdk"


def _tells() -> Any:
    run = Run()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        factor = run.config.alpha * run.config["alpha"] + run.config.get("beta", 0.5)
        factor += run.config.note["b"] + len(run.config) + sum(1 for _ in run.config)
        factor += ("alpha" in run.config) + ("gamma" in run.config) + bool(run) + run.step
        factor += {**run.config}["alpha"] + run.scale(1)
        run.config.widths.append(3)
        run.log({"loss": 1.0})
        run["other"] = 1
        run()
        with run as same:
            same.log(2)
        return cross_entropy(model, batch) * factor

    look: Any = lambda: (run.lines, run.config.widths)
    return Net(), loss, look


def test_a_tracker_shows_what_it_holds_and_is_told_nothing() -> None:
    sink = MemorySink()
    assert trained(_tells, "decorator", sink=sink) == trained(_tells)
    values = {r.name: r.value for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"] == pytest.approx(1.0, abs=1e-6)
    assert values["monitor/closure_grad_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_tracker_is_itself_outside_of_a_replay() -> None:
    run = Run()
    silent: Any = Silent(run, "")
    silent.log(1)
    silent["x"] = 2
    silent.step = 4
    assert isinstance(silent, Run)
    assert (run.lines, run.step, silent.config.alpha) == ([1, "x"], 4, 0.5)


@pytest.mark.parametrize(
    "touch",
    [next, iter, len, bool, lambda x: x[0], lambda x: x(), lambda x: x.name, lambda x: 1 in x],
)
def test_a_stand_in_refuses_every_touch_in_a_replay(touch: Any) -> None:
    class Thing(list):  # type: ignore[type-arg]
        name = "thing"

        def __next__(self) -> int:
            return 1

        def __call__(self) -> int:
            return 1

    other: Any = StandIn(Thing([1]), "it cannot be put back")
    assert touch(other) is not None
    with pytest.raises(LeavesTrace, match="it cannot be put back"), isolated(nn.Linear(1, 1)):
        touch(other)
