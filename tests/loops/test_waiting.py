"""Loops in which the attached optimizer takes no step are told so, with what to do."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.capture.waiting import PATIENCE, not_finite
from tests.conftest import blobs, mlp
from tests.neutrality.watch import digest


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation; its base optimizer makes the steps."""

    def __init__(self, params: Any, rho: float = 0.5) -> None:
        super().__init__(params, {"rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first_step(self) -> None:
        params = [p for g in self.param_groups for p in g["params"]]
        length = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * 0.5 / length)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in [p for g in self.param_groups for p in g["params"]]:
            p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()


class Loop:
    """A training loop of some kind, watched or not; what it told and what it came to."""

    def __init__(self, watched: bool = True, schedule: Any = 1, run_dir: Any = None) -> None:
        torch.manual_seed(0)
        self.model, self.batch = mlp(6, 8, 3, activation=nn.Tanh), blobs()
        self.sink, self.said, self.trail = MemorySink(), [], []
        self.watched, self.schedule, self.run_dir = watched, schedule, run_dir
        self.monitor: Any = None
        self.loss_fn: Any = cross_entropy

    def train(self, attached: Any, iterate: Any, times: int) -> "Loop":
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if self.watched:
                self.monitor = eq.attach(
                    self.model, attached, probes=[Conservation()], schedule=self.schedule,
                    budget=None, sinks=[self.sink], run_dir=self.run_dir,
                )  # fmt: skip
                self.loss_fn = self.monitor.loss(cross_entropy)
            for i in range(times):
                iterate(self, i)
                grads = [p.grad for p in self.model.parameters()]
                self.trail.append(digest(dict(self.model.state_dict()), grads))
            if self.monitor:
                self.monitor.close()
        self.said = [str(w.message) for w in seen if "eqtoolbox" in str(w.message)]
        return self

    def value(self, name: str) -> list[float]:
        return [r.value for r in self.sink.records if r.name == name]


def by_hand(times: int, attach: str = "sam", **options: Any) -> Loop:
    loop = Loop(**options)
    sam = SAM(loop.model.parameters())

    def iterate(loop: Loop, _: int) -> None:
        loop.loss_fn(loop.model, loop.batch).backward()
        sam.first_step()
        loop.loss_fn(loop.model, loop.batch).backward()
        sam.second_step()

    return loop.train(sam if attach == "sam" else sam.base, iterate, times)


@pytest.mark.parametrize("schedule", [1, 10**6])
def test_sam_by_hand_is_told_once_and_names_its_base(schedule: int) -> None:
    loop = by_hand(30, schedule=schedule)
    (said,) = loop.said
    assert (
        "20 losses were evaluated, and the parameters move, but no step() of the attached SAM"
        in said
    )
    assert "its .base, SGD, holds the same parameters: attach that one" in said
    assert loop.value("monitor/steps_unseen") == [PATIENCE]
    assert loop.trail == by_hand(30, watched=False).trail


def test_a_short_run_without_a_step_says_so_at_its_end(tmp_path: Path) -> None:
    loop = by_hand(3, run_dir=tmp_path / "run")
    (said,) = loop.said
    assert "6 losses were evaluated, and no step() of the attached SAM was seen" in said
    (finding,) = eq.Run(tmp_path / "run").findings()
    assert finding.level == "alarm"
    assert "its .base, SGD, holds the same parameters" in finding.text


def test_the_alarm_of_another_gradient_names_sam_where_its_base_is_attached() -> None:
    loop = by_hand(2, attach="base")
    (said,) = loop.said
    assert "SAM moved the parameters between the losses and the step" in said
    assert not loop.value("monitor/steps_unseen")


def plain(times: int, attach: str, accumulate: int = 1, **options: Any) -> Loop:
    loop = Loop(**options)
    live = torch.optim.Adam(loop.model.parameters(), lr=0.01)
    stale = torch.optim.SGD(loop.model.parameters(), lr=0.1)

    def iterate(loop: Loop, i: int) -> None:
        loop.loss_fn(loop.model, loop.batch).backward()
        if (i + 1) % accumulate == 0:
            live.step()
            live.zero_grad()

    return loop.train(stale if attach == "stale" else live, iterate, times)


def test_another_optimizer_that_steps_instead_is_named() -> None:
    (said,) = plain(30, "stale").said
    assert "no step() of the attached SGD was seen; there is another over the same" in said
    assert "(Adam" in said


@pytest.mark.parametrize("schedule", [1, 10**6])
@pytest.mark.parametrize("accumulate", [1, 50])
def test_a_loop_that_steps_is_told_nothing_however_long_its_windows(
    accumulate: int, schedule: int
) -> None:
    loop = plain(200, "live", accumulate, schedule=schedule)
    assert loop.said == []
    assert not loop.value("monitor/steps_unseen") and not loop.value("training/skipped_steps")
    assert loop.trail == plain(200, "live", accumulate, watched=False).trail


def scaled(times: int, bad: range, fused: bool = False, warm: int = 0, **options: Any) -> Loop:
    """A loop with a gradient scaler; iterations in `bad` have a gradient of NaN."""
    loop = Loop(**options)
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu")

    def iterate(loop: Loop, i: int) -> None:
        loss = loop.loss_fn(loop.model, loop.batch)
        if i in bad:
            loss = loss + (loop.model[2].weight * 0).square().sum().sqrt()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return loop.train(optimizer, iterate, times)


def test_a_scaler_that_skips_every_step_is_an_alarm_with_count_and_parameter(
    tmp_path: Path,
) -> None:
    loop = scaled(50, range(50), run_dir=tmp_path / "run")
    (said,) = loop.said
    assert "20 steps in a row were skipped: the gradient of 2.weight is not finite" in said
    assert loop.value("training/skipped_steps") == [20, 50]
    (finding,) = eq.Run(tmp_path / "run").findings()
    assert finding.level == "alarm"
    assert "all 50 were skipped (the gradient of 2.weight was not finite)" in finding.text
    assert loop.trail == scaled(50, range(50), watched=False).trail


def test_a_fused_optimizer_that_skips_every_step_is_an_alarm_too(tmp_path: Path) -> None:
    loop = scaled(30, range(30), fused=True, run_dir=tmp_path / "run")
    assert any(
        "the last 20 due steps were skipped: the gradient of 2.weight" in s for s in loop.said
    )
    assert loop.value("training/skipped_steps")[-1] == 30
    levels = {f.text: f.level for f in eq.Run(tmp_path / "run").findings()}
    (found,) = [text for text in levels if "No training step was applied" in text]
    assert levels[found] == "alarm"


@pytest.mark.parametrize("fused", [False, True])
def test_a_few_skips_at_the_start_are_a_note_at_most(tmp_path: Path, fused: bool) -> None:
    loop = scaled(12, range(3), fused=fused, run_dir=tmp_path / "run")
    assert not [s for s in loop.said if "skipped" in s]
    assert loop.value("training/skipped_steps")[-1] == 3
    (finding,) = [f for f in eq.Run(tmp_path / "run").findings() if "skipped (" in f.text]
    assert finding.level == "note"
    assert "how a gradient scaler finds its scale" in finding.text


def test_skips_that_begin_when_no_step_is_due_are_noticed() -> None:
    loop = scaled(150, range(5, 150), schedule=eq.at([0, 10**6]))
    (said,) = [s for s in loop.said if "skipped" in s]
    assert "the gradient of 2.weight is not finite" in said
    assert loop.trail == scaled(150, range(5, 150), watched=False).trail


def test_a_run_in_which_nothing_was_due_says_so_at_its_end() -> None:
    (said,) = plain(5, "live", schedule=eq.at([100])).said
    assert "nothing was measured: no probe was due in 5 steps" in said


def test_a_monitor_that_saw_no_training_says_nothing() -> None:
    assert plain(0, "live").said == []


def test_a_run_that_raises_is_not_told_that_it_is_empty() -> None:
    model, batch = mlp(6, 8, 3), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ZeroDivisionError, match="division"):  # noqa: SIM117
            with eq.attach(model, optimizer, probes=[Conservation()]) as monitor:
                monitor.loss(cross_entropy)(model, batch).backward()
                _ = 1 / 0
    assert not [w for w in seen if "eqtoolbox" in str(w.message)]


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    fine, bad = torch.zeros(3), torch.tensor([0.0, torch.inf])
    assert not_finite({}) == not_finite({"a": fine}) == ""
    assert not_finite({"a": fine, "b": bad, "c": bad * torch.nan}) == "b"
    sparse = torch.sparse_coo_tensor([[0]], [torch.nan], (3,), check_invariants=True)
    assert not_finite({"a": fine, "s": sparse}) == "s"
