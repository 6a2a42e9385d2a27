"""A replay sees what it cannot keep, and says where it is."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.operations import Operations, attention
from eqtoolbox.replay.reach import kinds, readers
from eqtoolbox.replay.reach.reach import Reach
from eqtoolbox.replay.reach.tensors import LiveTensors
from eqtoolbox.replay.reach.walk import said
from eqtoolbox.replay.thread.scope import LeavesTrace, current


class Holder:
    def __init__(self, **given: Any) -> None:
        vars(self).update(given)


def test_more_than_can_be_kept_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "MANY", 100)
    rows = Holder(rows=[Holder() for _ in range(200)])
    with pytest.raises(LeavesTrace, match=r"more than 100 objects, the last in Holder\.rows\["):
        Reach((rows,))


def test_long_lists_of_numbers_are_not_looked_into() -> None:
    found = Reach((Holder(pairs=[(k, "name") for k in range(kinds.MANY)]),))
    assert len(found.seen) < 10


def test_a_walk_ends_where_containers_hold_themselves() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    assert len(Reach((loop,)).slots) == 2


def test_paths_are_said_in_words() -> None:
    holder = Holder(table={"a": [Holder(it=(k for k in range(3)))]})
    ((_, path),) = Reach((holder,)).loose
    assert said(path) == "Holder.table['a'][0].it"


def test_a_large_array_that_moves_is_found_and_not_called_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "LARGE", 100)
    holder = Holder(rows=np.zeros(1000))
    model = nn.Linear(2, 2)
    with (
        pytest.raises(LeavesTrace, match=r"changed Holder\.rows in a way that could not be undone"),
        isolated(model, expected=(holder,)),
    ):
        holder.rows[:] = 1.0


def test_a_write_without_a_word_is_found_by_its_version() -> None:
    teacher = nn.Linear(2, 2)
    with (
        pytest.raises(LeavesTrace, match=r"wrote into Linear\.weight by an operation"),
        isolated(nn.Linear(2, 2), expected=(teacher,)),
        torch._C.DisableTorchFunction(),
        torch.no_grad(),
    ):
        teacher.weight.add_(1.0)


def test_a_parameter_that_was_written_into_is_named() -> None:
    model = nn.Linear(2, 2)
    given = model.weight.detach().clone()
    with pytest.raises(LeavesTrace, match=r"wrote into weight by an operation"), isolated(model):
        replay = current()
        assert replay is not None
        replay.protect({"weight": given})
        with torch._C.DisableTorchFunction():
            given.add_(1.0)
        replay.begin(None)


@pytest.mark.parametrize("how", ["in place", "data", "set_", "foreach", "out", "item"])
def test_announced_writes_are_undone_and_leave_no_version(how: str) -> None:
    teacher = nn.Linear(2, 2)
    before, version = teacher.weight.detach().clone(), teacher.weight._version
    address = teacher.weight.data_ptr()
    with isolated(nn.Linear(2, 2), expected=(teacher,)), torch.no_grad():
        p = teacher.weight
        if how == "in place":
            p.mul_(2.0)
        elif how == "data":
            p.data = p.data + 1.0
        elif how == "set_":
            p.set_(torch.ones(2, 2))
        elif how == "foreach":
            torch._foreach_add_([p], 1.0)
        elif how == "out":
            torch.add(p, 1.0, out=p)
        else:
            p[0, 0] = 7.0
        assert not torch.equal(p, before)
    assert torch.equal(teacher.weight, before)
    assert teacher.weight._version == version
    assert teacher.weight.data_ptr() == address


def test_tensors_that_were_not_watched_stay_written() -> None:
    """The must-fail twin: what is out of reach is not put back."""
    lonely = nn.Linear(2, 2)
    before = lonely.weight.detach().clone()
    with isolated(nn.Linear(2, 2)), torch.no_grad():
        lonely.weight.mul_(2.0)
    assert torch.equal(lonely.weight, 2 * before)


def test_gradients_and_flags_of_live_tensors_come_back() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.zeros(3)
    live, own = LiveTensors([("p", p)]), p.grad
    p.grad, p.requires_grad = None, False
    assert live.undo() == []
    assert p.grad is own
    assert p.requires_grad


def test_evaluations_begin_where_the_step_began() -> None:
    holder = Holder(seen=[1], mean=torch.zeros(2))
    model = nn.Linear(2, 2)
    start = Belongings((model, holder), (model,))
    holder.seen.append(2)
    holder.mean += 1
    with isolated(model, expected=(holder,)):
        replay = current()
        assert replay is not None
        for _ in range(2):
            replay.begin(start)
            assert holder.seen == [1]
            assert holder.mean.tolist() == [0.0, 0.0]
            holder.seen.append(3)
            holder.mean.fill_(math.nan)
    assert holder.seen == [1, 2]
    assert holder.mean.tolist() == [1.0, 1.0]


@contextmanager
def reached_by_an_actor(thing: Any) -> Iterator[None]:
    """Scope in which another thread can reach it, too."""
    stop = threading.Event()

    def act() -> None:
        while not stop.wait(0.001):
            len(thing)

    actor = threading.Thread(target=act, name="actor")
    actor.start()
    try:
        yield
    finally:
        stop.set()
        actor.join()


@pytest.mark.parametrize("when", ["before the replay", "between evaluations", "in one", "never"])
def test_what_another_thread_can_reach_is_compared_with_every_start(when: str) -> None:
    model, seen = nn.Linear(2, 2), [1]
    holder = Holder(seen=seen, mean=torch.zeros(2))
    starts = [Belongings((model, holder), (model,)) for _ in range(2)]

    def evaluate() -> None:
        if when == "before the replay":
            seen.append(2)
        with isolated(model, expected=(holder,)):
            replay = current()
            assert replay is not None
            for start in (*starts, *starts):
                replay.begin(start)
                if when == "between evaluations" and start is starts[1]:
                    seen.append(2)
            if when == "in one":
                seen.append(2)

    with reached_by_an_actor(seen):
        if when == "never":
            evaluate()
        else:
            with pytest.raises(LeavesTrace, match=r"seen changed .* thread actor can reach it"):
                evaluate()
    assert seen == ([1] if when == "never" else [1, 2])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention_is_what_the_mathematical_kernel_gives(causal: bool, mask: str | None) -> None:
    if causal and mask:
        mask = None
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 8, generator=generator) for _ in range(3))
    given: Any = {"bool": torch.ones(5, 5).tril().bool(), "float": torch.randn(5, 5)}.get(
        mask or ""
    )
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=given, is_causal=causal
        )
    assert torch.equal(attention(q, k, v, given, is_causal=causal), wanted)


def test_attention_inside_torchs_own_layer_differentiates_twice() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8, requires_grad=True)

    def second() -> Tensor:
        y = layer(x, x, x, need_weights=False)[0].square().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match="derivative"):
        second()
    with Operations():
        assert second().isfinite().all()
