"""Steps that begin where earlier ones began: told if something undid them, and only then."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.watch.vitals.retraced import COLUMNS, KEPT, Retraced, fingerprint

WEIGHTS = {"w": torch.randn(3, 70_000, generator=torch.Generator().manual_seed(0))}


def changed(at: int, by: int) -> dict[str, Tensor]:
    """The weights with the bits of one entry raised, as an integer."""
    w = WEIGHTS["w"].clone()
    w.view(torch.int32).view(-1)[at] += by
    return {"w": w}


@pytest.mark.parametrize("at", [0, 1, 65_535, 65_536, 209_999])
def test_one_bit_anywhere_changes_a_fingerprint(at: int) -> None:
    assert fingerprint(changed(at, 1)) != fingerprint(WEIGHTS) == fingerprint(changed(at, 0))


def test_changes_that_cancel_in_a_sum_change_a_fingerprint() -> None:
    swapped = {"w": WEIGHTS["w"].flip(1)}
    moved = changed(5, 1)
    moved["w"].view(torch.int32).view(-1)[6] -= 2
    moved["w"].view(torch.int32).view(-1)[7] += 1
    below = changed(0, 1)  # and back by as much in the row of words below it
    below["w"].view(torch.int32).view(-1)[2 * COLUMNS] -= 1
    names = [fingerprint(x) for x in (WEIGHTS, swapped, moved, below, {"v": WEIGHTS["w"]}, {})]
    assert len(set(names)) == 6


def test_all_changes_of_a_few_bits_have_names_of_their_own() -> None:
    ones = torch.ones(4).view(torch.int32)
    moves = itertools.product(range(-2, 3), repeat=4)
    moved = ((ones + torch.tensor(m, dtype=torch.int32)).view(torch.float32) for m in moves)
    assert len({fingerprint({"w": x}) for x in moved}) == 5**4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_types_of_any_size_have_fingerprints(dtype: torch.dtype) -> None:
    x = {"w": torch.ones(3, 5, dtype=dtype), "none": torch.ones(0, dtype=dtype)}
    y = {**x, "w": x["w"] + torch.finfo(dtype).eps}
    assert fingerprint(x) == fingerprint({n: t.clone() for n, t in x.items()}) != fingerprint(y)
    turned = {**x, "w": x["w"].T.contiguous().T}
    assert fingerprint(turned) == fingerprint(x)  # the same numbers, laid out otherwise
    within = torch.zeros(16, dtype=dtype)[1:].view(3, 5)  # begins in the middle of a word
    assert fingerprint({**x, "w": within.copy_(x["w"])}) == fingerprint(x)


def test_what_moved_nothing_or_raised_its_loss_is_nothing_to_return_to() -> None:
    here, there = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    for moved, lowered, told in ((1e-3, True, True), (0.0, True, False), (1e-3, False, False)):
        seen = Retraced()
        assert seen.look(0, here, moved, lowered) is None
        assert seen.look(5, there, 1e-3, True) is None
        back = seen.look(9, here, 1e-3, True)
        assert (back is not None) is told
    seen.look(12, here, 1e-3, True)
    back = seen.look(20, here, 1e-3, True)
    assert back is not None and (back.steps, back.began, back.times) == (8, 12, 2)


def test_beginnings_are_remembered_after_a_resume_and_few_of_them() -> None:
    first = Retraced()
    for step in range(2 * KEPT):
        first.look(step, {"w": torch.tensor([float(step)])}, 1.0, True)
    state = first.state_dict()
    assert len(state["began"]) == KEPT
    second = Retraced()
    second.load_state_dict(state)
    assert second.look(900, {"w": torch.tensor([0.0])}, 1.0, True) is None
    back = second.look(901, {"w": torch.tensor([2.0 * KEPT - 1])}, 1.0, True)
    assert back is not None and back.began == 2 * KEPT - 1


Act = Callable[[nn.Module, torch.optim.Optimizer, int], None]


class Loop:
    """A training every step of which is measured, with an act before each."""

    def __init__(self, home: Path, size: int = 32) -> None:
        torch.manual_seed(0)
        self.home, self.size = home, size
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.x = torch.randn(64, 4)
        self.y = self.x[:, :1].sin()

    def __call__(self, act: Act, optimizer: torch.optim.Optimizer | None = None) -> eq.Run:
        optimizer = optimizer or torch.optim.SGD(self.net.parameters(), lr=0.05)
        how: dict[str, Any] = {"budget": None, "schedule": 1, "probes": {"curvature": {"k": 1}}}
        with eq.attach(self.net, optimizer, run_dir=self.home, **how) as monitor:
            loss = monitor.loss(lambda model, b: F.mse_loss(model(b[0]), b[1]))
            for step in range(12):
                act(self.net, optimizer, step)
                rows = torch.randperm(64)[: self.size]

                def closure(rows: Tensor = rows) -> Tensor:
                    optimizer.zero_grad()
                    value = loss(self.net, (self.x[rows], self.y[rows]))
                    value.backward()
                    return value

                if isinstance(optimizer, torch.optim.LBFGS):
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
        run = eq.Run(self.home)
        assert len(run.records("vital/own_batch")) >= 10
        return run


@pytest.mark.parametrize("every", [1, 4])
def test_weights_that_are_written_back_are_told_with_the_steps_they_undo(
    every: int, tmp_path: Path
) -> None:
    loop = Loop(tmp_path)
    first = copy.deepcopy(loop.net.state_dict())
    run = loop(lambda net, _, step: step % every or net.load_state_dict(first))
    rows = run.records("vital/written_back")
    assert [r.step for r in rows] == [*range(every, 12, every)]
    assert {r.value for r in rows} == {every}
    assert [r.facts["times"] for r in rows] == [*range(1, len(rows) + 1)]


def swapped(net: nn.Module, _: torch.optim.Optimizer, step: int) -> None:
    """Other weights for an evaluation, and those back that were there before."""
    aside = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.9)
    net.load_state_dict(aside)


def still(_: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.0 if step % 3 else 0.05


def frozen(net: nn.Module, _: torch.optim.Optimizer, step: int) -> None:
    for p in net.parameters():
        p.requires_grad_(step % 2 == 0 or p.dim() > 1)


def interpolated(net: nn.Module, _: torch.optim.Optimizer, step: int) -> None:
    slow = net.__dict__.setdefault("slow", [p.detach().clone() for p in net.parameters()])
    if step and step % 3 == 0:
        with torch.no_grad():
            for s, p in zip(slow, net.parameters(), strict=True):
                p.copy_(s.lerp_(p, 0.5))


@pytest.mark.parametrize("act", [swapped, still, frozen, interpolated])
def test_loops_that_undo_nothing_are_not_told(act: Act, tmp_path: Path) -> None:
    assert "vital/written_back" not in Loop(tmp_path)(act)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_trial_steps_within_a_step_are_none(search: str | None, tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    optimizer = torch.optim.LBFGS(loop.net.parameters(), lr=0.5, max_iter=4, line_search_fn=search)
    assert "vital/written_back" not in loop(lambda *_: None, optimizer)


def test_a_refused_step_is_no_loss(tmp_path: Path) -> None:
    """One that raises the loss of its batch, after which the weights before it are taken."""
    loop = Loop(tmp_path, size=64)
    last: list[Any] = [float("inf"), None]
    optimizer, refused = torch.optim.SGD(loop.net.parameters(), lr=20.0), []

    def accept(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        with torch.no_grad():
            value = float(F.mse_loss(net(loop.x), loop.y))
        if value > last[0]:
            refused.append(step)
            net.load_state_dict(last[1])
            optimizer.param_groups[0]["lr"] /= 4
        else:
            last[:] = value, copy.deepcopy(net.state_dict())

    assert "vital/written_back" not in loop(accept, optimizer)
    assert len(refused) > 1
