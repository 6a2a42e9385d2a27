"""The replayed gradient is compared at every due step, and what is said of it is dated."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.report.finding import Finding

STEPS, EVERY = 30, 5


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(32, 8, generator=draw), torch.randint(0, 2, (32,), generator=draw)


def train(
    home: Path,
    clear: Callable[[int], bool],
    *,
    parts: int = 1,
    held: str = "",
    same: bool = False,
) -> tuple[eq.Run, list[str]]:
    """A run in which gradients are cleared before steps of the loop's choice."""
    torch.manual_seed(0)
    model, criterion = net(), nn.CrossEntropyLoss()
    params = [p for n, p in model.named_parameters() if n.startswith(held)]
    optimizer = torch.optim.SGD(params, lr=0.0 if same else 0.05)
    with (
        warnings.catch_warnings(record=True) as seen,
        eq.attach(
            model, optimizer, criterion=criterion, run_dir=home, budget=None, schedule=EVERY,
            probes=[Curvature(k=1, smallest=False)],
        ),
    ):  # fmt: skip
        warnings.simplefilter("always")
        for step in range(STEPS):
            if clear(step):
                optimizer.zero_grad()
            for part in range(parts):
                x, y = batch(0 if same else 100 * step + part)
                (criterion(model(x), y) / parts).backward()
            optimizer.step()
    return eq.Run(home), [str(w.message) for w in seen]


def about(run: eq.Run, words: str) -> Finding:
    found = [f for f in run.findings() if words in f.text]
    assert len(found) == 1, [f.text for f in run.findings()]
    return found[0]


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_that_nobody_clears_are_found_at_the_first_check_that_sees_them(
    tmp_path: Path, parts: int
) -> None:
    run, seen = train(tmp_path / "run", lambda step: False, parts=parts)
    steps, cosines = run.series("monitor/closure_grad_cos")
    assert steps.tolist() == list(range(0, STEPS, EVERY))
    assert cosines[0] == pytest.approx(1.0, abs=1e-6)
    assert max(cosines[1:]) < 0.99
    found = about(run, "not the training loss")
    assert "since step 5" in found.text and "zero_grad() is missing" in found.text
    alarm = run.findings()[0]  # which explains the other
    assert (alarm.level, alarm.id) == ("alarm", "zero-grad-forgotten")
    (warning,) = [w for w in seen if "another gradient" in w]
    assert "at step 5" in warning and "zero_grad() is missing" in warning


def test_a_multiple_of_the_gradient_is_found_too(tmp_path: Path) -> None:
    """The same batch and no motion: the sum points where the gradient does."""
    run, seen = train(tmp_path / "run", lambda step: False, same=True)
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx([1.0] * 6, abs=1e-6)
    assert run.series("monitor/closure_grad_ratio")[1] == pytest.approx([1, 6, 11, 16, 21, 26])
    warning = about(run, "times that of the replayed loss")
    alarm = run.findings()[0]  # which explains the other
    assert (alarm.level, alarm.id) == ("alarm", "zero-grad-forgotten")
    assert "since step 5" in warning.text and "zero_grad() is missing" in warning.text
    assert any("another scale (at step 5)" in w for w in seen)


@pytest.mark.parametrize("parts", [1, 3])
def test_cleared_gradients_are_good_at_every_check(tmp_path: Path, parts: int) -> None:
    """Must fail: a loop that clears, however many micro-batches it adds up."""
    run, seen = train(tmp_path / "run", lambda step: True, parts=parts)
    good = about(run, "is the training loss")
    assert good.level == "note", "labels are random: nothing of a run without signal is praised"
    assert "at 6 checks from step 0 to 25" in good.text
    assert not seen


def test_a_loss_that_comes_back_is_said_with_its_step(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", lambda step: step != 5)
    warning = about(run, "left the training loss")
    assert "at 1 of 6 checks" in warning.text and "at step 5" in warning.text
    assert "zero_grad() is missing" in warning.text


def test_a_single_check_is_said_to_be_one(tmp_path: Path) -> None:
    train(tmp_path / "run", lambda step: True)
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "records.jsonl").write_text("".join(r for r in lines if '"step": 0' in r))
    assert "at step 0, the only check" in about(eq.Run(tmp_path / "run"), "training loss").text


def test_parameters_in_no_optimizer_are_named(tmp_path: Path) -> None:
    run, seen = train(tmp_path / "run", lambda step: True, held="2")
    (row,) = run.records("monitor/parameters_untrained")
    assert (row.value, row.note) == (2.0, "0.weight, 0.bias")
    warning = about(run, "in no attached optimizer")
    assert warning.level == "warning" and "0.weight, 0.bias" in warning.text
    assert any("0.weight, 0.bias" in w and "requires_grad_(False)" in w for w in seen)


def test_gradients_that_pile_up_outside_the_optimizer_are_no_other_loss(tmp_path: Path) -> None:
    """`optimizer.zero_grad()` clears what it holds: the others are not compared."""
    run, _ = train(tmp_path / "run", lambda step: True, held="2")
    assert run.series("monitor/closure_grad_cos")[1] == pytest.approx([1.0] * 6, abs=1e-6)


def test_every_parameter_in_an_optimizer_is_named_nowhere(tmp_path: Path) -> None:
    """Must fail."""
    run, _ = train(tmp_path / "run", lambda step: True)
    assert "monitor/parameters_untrained" not in run


def test_frozen_parameters_are_not_missed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, run_dir=tmp_path / "run", budget=None, schedule=1, probes=[Curvature(k=1)]
    ) as monitor:
        monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))(model, batch(0)).backward()
        optimizer.step()
    assert "monitor/parameters_untrained" not in eq.Run(tmp_path / "run")
