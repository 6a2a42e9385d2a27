"""The switch EQTOOLBOX, the newest numbers for pruners, and the channel of the log."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from tests.conftest import blobs, mlp


def train(monitor_of: object, steps: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model, criterion, (x, y) = mlp(6, 8, 3), nn.CrossEntropyLoss(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor_of(model, optimizer, criterion) as monitor:  # type: ignore[operator]
        loss_fn = monitor.loss(lambda model, batch: criterion(model(batch[0]), batch[1]))
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(model, (x, y)).backward()
            optimizer.step()
            assert monitor.validate((x, y)) == []
    monitor.load_state_dict(monitor.state_dict())
    return model


@pytest.mark.parametrize("said", ["off", "OFF"])
def test_off_watches_writes_and_tells_nothing(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EQTOOLBOX", said)
    calls: list[int] = []

    def off(model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module) -> eq.Monitor:
        monitor = eq.attach(
            model, optimizer, criterion=criterion, run_dir=tmp_path / "run", schedule=1,
            sinks=[lambda numbers, step: calls.append(step)], histograms=True,
        )  # fmt: skip
        assert not optimizer._optimizer_step_post_hooks and not model._forward_hooks
        assert not model._forward_pre_hooks and monitor.latest("training/loss") is None
        return monitor

    train(off)
    assert not (tmp_path / "run").exists() and not calls
    assert capsys.readouterr().err == ""


def test_on_is_as_if_it_were_not_set_and_other_words_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for said in ("on", ""):
        monkeypatch.setenv("EQTOOLBOX", said)
        with eq.attach(model, optimizer, criterion=nn.MSELoss()) as monitor:
            assert "attached" in repr(monitor)
    monkeypatch.setenv("EQTOOLBOX", "maybe")
    with pytest.raises(ValueError, match="EQTOOLBOX must be on or off, got 'maybe'"):
        eq.attach(model, optimizer, criterion=nn.MSELoss())
    assert not optimizer._optimizer_step_post_hooks


def test_the_newest_number_is_that_of_the_last_certified_record(tmp_path: Path) -> None:
    model, criterion, (x, y) = mlp(6, 8, 3), nn.CrossEntropyLoss(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, criterion=criterion, probes=[Curvature(k=1)], schedule=2, budget=None,
        run_dir=tmp_path / "run",
    ) as monitor:  # fmt: skip
        assert monitor.latest("curvature/stability") is None
        seen = []
        for _ in range(4):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            seen.append(monitor.latest("curvature/stability"))
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        assert monitor.latest("curvature/stability") == seen[-1], "no number is no newer number"
        assert monitor.latest("no/such/record") is None
    run = eq.Run(tmp_path / "run")
    first, second = run.series("curvature/stability")[1][:2]
    assert seen == [first, first, second, second]


def test_what_a_user_should_know_goes_to_one_channel_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, logger="eqtoolbox"):
        eq.attach(model, optimizer, criterion=nn.MSELoss()).close()
    assert {r.name.split(".")[0] for r in caplog.records} == {"eqtoolbox"}
    assert "complex" in caplog.text
    assert not logging.getLogger("eqtoolbox").handlers, "how it is shown is the program's choice"
