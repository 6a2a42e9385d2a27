"""Trainings in threads, watched or not, are what each of them is alone."""

import asyncio
import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import eqtoolbox as eq

PROBES = {
    "conservation": {},
    "equivariance": {"symmetries": ["flip"], "samples": 2},
    "curvature": {"k": 1, "max_matvecs": 6},
}
Batch = tuple[Tensor, Tensor]
CALL, HOOKS = nn.Module.__call__, torch_module._global_forward_hooks


class Net(nn.Module):
    """Attention, normalisation and a checkpoint: what replays answer for themselves."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.flat, self.first = nn.Flatten(), nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.utils.checkpoint.checkpoint(self.body, self.flat(x), use_reentrant=False)
        mixed, _ = self.attention(h[:, None], h[:, None], h[:, None], need_weights=False)
        return self.last(mixed[:, 0])

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.first(x)))


class Plain(Net):
    """Without the checkpoint, which sets the global stream back by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.flat(x)))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Loop:
    """A training that draws from no global stream, on a model made beforehand."""

    def __init__(self, seed: int, watch: bool, loss: Any = cross_entropy, steps: int = 5) -> None:
        self.model, self.watch, self.loss, self.steps = Net(seed), watch, loss, steps
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.generator = torch.Generator().manual_seed(seed)
        self.fired: list[int] = []
        self.model.first.register_forward_hook(lambda *_: self.fired.append(1))
        self.mean = self.model.norm.running_mean

    def __call__(self, turn: Callable[[], Any] = lambda: None) -> list[Any]:
        monitor, loss_fn = None, self.loss
        if self.watch:
            monitor = eq.attach(
                self.model, self.optimizer, probes=PROBES, schedule=1, budget=None,
                on_error="raise",
            )  # fmt: skip
            loss_fn = monitor.loss(self.loss)
        for _ in range(self.steps):
            turn()
            self.step(loss_fn)
        if monitor is not None:
            monitor.close()
        return self.state()

    def step(self, loss_fn: Any) -> None:
        x = torch.randn(8, 1, 4, 4, generator=self.generator)
        y = torch.randint(0, 3, (8,), generator=self.generator)
        self.optimizer.zero_grad()
        loss_fn(self.model, (x, y)).backward()
        self.optimizer.step()

    def state(self) -> list[Any]:
        values = [t.tolist() for t in self.model.state_dict().values()]
        same = self.model.norm.running_mean is self.mean
        return [values, len(self.fired), same, len(self.model.first._forward_hooks)]


def clean() -> bool:
    """Whether nothing of the process is exchanged."""
    tables = torch_module._global_forward_hooks is HOOKS
    return nn.Module.__call__ is CALL and tables and not HOOKS


def together(loops: list[Loop]) -> list[Any]:
    """All loops at once, step by step."""
    barrier = threading.Barrier(len(loops))
    errors: list[Exception] = []

    def run(loop: Loop) -> Any:
        try:
            return loop(lambda: barrier.wait(120))
        except Exception as error:
            errors.append(error)  # the first is the cause: the others only miss it at the barrier
            barrier.abort()

    with ThreadPoolExecutor(len(loops)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(pool.map(run, loops))
    if errors:
        raise errors[0]
    return found


@pytest.mark.parametrize("count", [2, 4, 8])
def test_watched_trainings_in_a_pool_are_what_each_is_alone(count: int) -> None:
    alone = [Loop(seed, watch=False)() for seed in range(count)]
    assert together([Loop(seed, watch=True) for seed in range(count)]) == alone
    assert clean()


def test_an_unwatched_training_beside_a_watched_one_does_not_notice_it() -> None:
    alone = [Loop(1, watch=False)(), Loop(2, watch=False)()]
    assert together([Loop(1, watch=False), Loop(2, watch=True)]) == alone
    assert clean()


def test_threads_that_share_a_teacher_leave_it_as_it_was() -> None:
    def loops(watch: bool) -> tuple[Net, list[Loop]]:
        teacher = Net(7).eval().requires_grad_(False)

        def distil(model: nn.Module, batch: Batch) -> Tensor:
            apart = F.mse_loss(model(batch[0]), teacher(batch[0]))
            return cross_entropy(model, batch) + apart

        return teacher, [Loop(seed, watch, distil) for seed in range(3)]

    _, single = loops(False)
    alone = [loop() for loop in single]
    teacher, watched = loops(True)
    before = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    values = copy.deepcopy(before)
    assert together(watched) == alone
    after = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    assert all(after[name] is t for name, t in before.items())
    assert all(torch.equal(after[name], t) for name, t in values.items())


def test_hooks_of_other_threads_fire_as_often_as_ever() -> None:
    fired: list[int] = []
    lone = threading.Event()

    def count(*_: Any) -> None:
        if threading.current_thread() is bystander:
            fired.append(1)

    def calls() -> None:
        layer = nn.Identity()
        while not lone.is_set():
            layer(torch.ones(1))
            made.append(1)

    made: list[int] = []
    handle = torch_module.register_module_forward_hook(count)
    bystander = threading.Thread(target=calls)
    bystander.start()
    Loop(1, watch=True, steps=3)()
    lone.set()
    bystander.join()
    handle.remove()
    assert len(fired) == len(made) > 0
    assert clean()


def test_streams_that_another_thread_draws_from_go_on() -> None:
    drawn: list[float] = []
    done = threading.Event()

    def draws() -> None:
        while not done.is_set():
            drawn.append(torch.rand(1).item())

    loop = Loop(1, watch=True, steps=3)
    loop.model.__class__ = Plain
    torch.manual_seed(0)
    other = threading.Thread(target=draws)
    other.start()
    loop()
    done.set()
    other.join()
    torch.manual_seed(0)
    assert drawn == [torch.rand(1).item() for _ in drawn]


def test_a_loss_that_runs_another_watched_model_is_watched_as_any() -> None:
    """Both monitors measure; neither catches the other's replays."""

    def run(watch: bool) -> list[Any]:
        inner = Loop(1, watch=False)
        outer = Loop(2, watch=False)
        inner_fn = cross_entropy
        monitors = []

        def distil(model: nn.Module, batch: Batch) -> Tensor:
            return inner_fn(inner.model, batch) * 0.1 + cross_entropy(model, batch)

        outer_fn: Any = distil
        if watch:
            first = eq.attach(inner.model, inner.optimizer, probes=PROBES, schedule=1, budget=None)
            second = eq.attach(outer.model, outer.optimizer, probes=PROBES, schedule=1, budget=None)
            monitors = [first, second]
            inner_fn, outer_fn = first.loss(cross_entropy), second.loss(distil)
        for _ in range(4):
            outer.step(outer_fn)
            inner.optimizer.step()
            inner.optimizer.zero_grad()
        for monitor in monitors:
            monitor.close()
        return [*inner.state(), *outer.state()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(True) == run(False)
    assert clean()


def test_interleaved_trainings_of_one_thread_are_what_each_is_alone() -> None:
    async def train(seed: int, watch: bool) -> list[Any]:
        loop = Loop(seed, watch=False)
        monitor = None
        loss_fn: Any = cross_entropy
        if watch:
            monitor = eq.attach(loop.model, loop.optimizer, probes=PROBES, schedule=1, budget=None)
            loss_fn = monitor.loss(cross_entropy)
        for _ in range(4):
            loop.step(loss_fn)
            await asyncio.sleep(0)
        if monitor is not None:
            monitor.close()
        return loop.state()

    async def both(watch: bool) -> list[Any]:
        return list(await asyncio.gather(train(1, watch), train(2, watch)))

    assert asyncio.run(both(True)) == asyncio.run(both(False))


def test_an_exchange_for_the_whole_process_is_noticed() -> None:
    """What these tests look at: a call that is answered for every thread silences its hooks."""

    def silent(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module.forward(*args, **kwargs)

    alone = Loop(1, watch=False)()
    nn.Module.__call__ = silent  # type: ignore[method-assign]
    try:
        assert not clean()
        assert Loop(1, watch=False)() != alone
    finally:
        nn.Module.__call__ = CALL  # type: ignore[method-assign]


def _with_an_actor(buffer: list[int], model: nn.Module, loss: Any) -> int:
    """A training of some steps while another thread fills `buffer`; how many rows it made."""
    stop, made = threading.Event(), [0]

    def act() -> None:
        while not stop.wait(0.0005):
            buffer.append(made[0])
            made[0] += 1

    actor = threading.Thread(target=act, name="actor")
    actor.start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = eq.attach(model, optimizer, schedule=1, budget=None, probes=PROBES)
    watched = monitor.loss(loss)
    for _ in range(4):
        optimizer.zero_grad()
        watched(model, (torch.randn(4, 16), torch.tensor([0, 1, 2, 0]))).backward()
        optimizer.step()
    monitor.close()
    stop.set()
    actor.join()
    return made[0]


def test_what_another_thread_writes_meanwhile_is_never_taken_back() -> None:
    buffer: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1 + 0 * len(buffer))

    with pytest.warns(RuntimeWarning, match=r"buffer changed while .* thread actor can reach it"):
        made = _with_an_actor(buffer, Plain(0), loss)
    assert buffer == [*range(made)]


def test_state_that_the_other_thread_cannot_reach_is_kept_as_ever() -> None:
    buffer: list[int] = []
    calls: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch) * (1 + 0.01 * len(calls))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = _with_an_actor(buffer, Plain(0), loss)
    assert buffer == [*range(made)]
    assert len(calls) == 4


CALLS = 0


def test_a_training_in_a_thread_of_its_own_is_not_mistaken_for_shared() -> None:
    """The thread that waits for it reaches everything, and changes nothing before it ends."""
    global CALLS
    CALLS, kept = 0, []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        global CALLS
        CALLS += 1
        return cross_entropy(model, batch) * (1 + 0.01 * CALLS)

    def train() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = Plain(0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with eq.attach(model, optimizer, schedule=1, budget=None, probes=PROBES) as monitor:
                watched = monitor.loss(loss)
                for _ in range(3):
                    optimizer.zero_grad()
                    batch = (torch.randn(4, 16), torch.tensor([0, 1, 2, 0]))
                    watched(model, batch).backward()
                    optimizer.step()
            kept.append(CALLS)

    worker = threading.Thread(target=train)
    worker.start()
    worker.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train).result()
    assert kept == [3, 6]
