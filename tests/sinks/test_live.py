"""The live line names the stability of the optimizer in use."""

import pytest
import torch
import tqdm
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.live import LiveLine
from tests.conftest import blobs, mlp


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "sharpness*0.05 "),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "sharpness*0.0263 "),
        (lambda p: torch.optim.AdamW(p, lr=1e-3), "AdamW stability "),
    ],
)
def test_the_live_line_names_the_stability_of_the_optimizer_in_use(
    make: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(tqdm.tqdm, "write", lambda line: lines.append(line))
    torch.manual_seed(0)
    model, criterion, (x, y) = mlp(6, 8, 3), nn.CrossEntropyLoss(), blobs()
    optimizer = make(model.parameters())  # type: ignore[operator]
    with eq.attach(
        model, optimizer, criterion=criterion, probes=[Curvature(k=1)], budget=None,
        sinks=[LiveLine()],
    ):  # fmt: skip
        for _ in range(2):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    assert all(said in line for line in lines) and lines
    assert not any("lr/2" in line for line in lines)
