"""Training features: the loops that people write, each as a function of a `Watch`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tests.neutrality.watch import Batch, Watch, batches, cross_entropy, state

STEPS = 3


@dataclass(frozen=True)
class Feature:
    """A way to train."""

    name: str
    run: Callable[[Watch], None]
    gradient: bool = True  # `.grad` is that of the loss, up to a factor
    surfaces: bool = True  # runs on every surface, not only with the decorator


FEATURES: list[Feature] = []


def feature(name: str, **options: bool) -> Callable[[Any], Any]:
    def known(run: Callable[[Watch], None]) -> Callable[[Watch], None]:
        FEATURES.append(Feature(name, run, **options))
        return run

    return known


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


@feature("plain loop")
def plain(
    watch: Watch, optimizer_of: Any = None, before_step: Any = None, after: Any = None
) -> Any:
    model = watch.net()
    optimizer = (optimizer_of or (lambda m: sgd(m, momentum=0.9, weight_decay=1e-2)))(model)
    loss_fn = watch.attach(model, optimizer)
    for batch in batches(STEPS):
        watch.at("before the forward")
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        watch.at("before the backward")
        loss.backward()
        watch.at("before the step")
        if before_step:
            before_step(model)
        optimizer.step()
        watch.at("after the step")
        if after:
            after(model, optimizer)
        watch.seen.append(loss.item())
        watch.note(loss, state(model, optimizer))


@feature("AdamW, parameter groups")
def groups(watch: Watch) -> None:
    plain(
        watch,
        lambda m: torch.optim.AdamW(
            [
                {"params": m.hidden.parameters(), "lr": 1e-2, "weight_decay": 0.1},
                {"params": [*m.norm.parameters(), *m.head.parameters()], "lr": 1e-3},
            ]
        ),
    )


@feature("learning-rate scheduler")
def scheduler(watch: Watch) -> None:
    made: list[Any] = []

    def step(model: nn.Module, optimizer: Any) -> None:
        if not made:
            made.append(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
            optimizer.step = optimizer.step  # the scheduler wrapped it on the instance
        else:
            made[0].step()

    plain(watch, after=step)


@feature("clipping by norm")
def clip_norm(watch: Watch) -> None:
    plain(watch, before_step=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01))


@feature("clipping by value", gradient=False)
def clip_value(watch: Watch) -> None:
    plain(watch, before_step=lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01))


def _scaled(watch: Watch, fused: bool) -> None:
    model = watch.net()
    optimizer = sgd(model, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss_fn = watch.attach(model, optimizer)
    for step, batch in enumerate(batches(STEPS + 1)):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        scaler.scale(loss).backward()
        if step == 1:
            next(model.parameters()).grad.fill_(float("inf"))  # an overflow: the step is skipped
        scaler.step(optimizer)
        scaler.update()
        if fused or step != 1:
            watch.seen.append(loss.item())
        watch.note(loss, state(model, optimizer), scaler.state_dict())


@feature("GradScaler with a skipped step")
def scaler_plain(watch: Watch) -> None:
    _scaled(watch, fused=False)


@feature("GradScaler, fused optimizer", gradient=False)
def scaler_fused(watch: Watch) -> None:
    _scaled(watch, fused=True)


@feature("autocast bfloat16")
def autocast(watch: Watch) -> None:
    model = watch.net()
    optimizer = sgd(model)
    loss_fn = watch.attach(model, optimizer)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        watch.seen.append(loss.item())
        watch.note(loss, state(model, optimizer))


@feature("gradient accumulation")
def accumulation(watch: Watch) -> None:
    model = watch.net()
    optimizer = sgd(model, momentum=0.9)
    loss_fn = watch.attach(model, optimizer)
    for _ in range(STEPS):
        losses = []
        for batch in batches(3):
            loss = loss_fn(model, batch) / 3
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        watch.seen.append(sum(losses))
        watch.note(losses, state(model, optimizer))


def _closure(watch: Watch, optimizer_of: Any) -> None:
    model = watch.net()
    optimizer = optimizer_of(model)
    loss_fn = watch.attach(model, optimizer)
    for batch in batches(STEPS):
        first: list[float] = []

        def closure(batch: Batch = batch, first: list[float] = first) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            first.append(loss.item())
            return loss

        optimizer.step(closure)
        watch.seen.append(first[0])
        watch.note(first, state(model, optimizer))


@feature("closure")
def closure(watch: Watch) -> None:
    _closure(watch, sgd)


@feature("LBFGS", gradient=False)
def lbfgs(watch: Watch) -> None:
    _closure(watch, lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3))


@feature("several optimizers")
def several(watch: Watch) -> None:
    model = watch.net()
    first = torch.optim.SGD(model.hidden.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.AdamW([*model.norm.parameters(), *model.head.parameters()], lr=1e-2)
    loss_fn = watch.attach(model, [first, second])
    for batch in batches(STEPS):
        loss = loss_fn(model, batch)
        loss.backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        watch.seen.append(loss.item())
        watch.note(loss, state(model, first, second))


@feature("optimizer in backward")
def in_backward(watch: Watch) -> None:
    model = watch.net()
    own = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def step(p: Tensor) -> None:
        own[p].step()
        own[p].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(step) for p in own]
    loss_fn = watch.attach(model, own)
    for batch in batches(STEPS):
        loss = loss_fn(model, batch)
        loss.backward()
        watch.seen.append(loss.item())
        watch.note(loss, state(model, *own.values()))
    for handle in handles:
        handle.remove()


@feature("parameters unfrozen and added")
def unfrozen(watch: Watch) -> None:
    model = watch.net()
    model.hidden.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_fn = watch.attach(model, optimizer)
    for step, batch in enumerate(batches(STEPS + 1)):
        if step == 2:
            model.hidden.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.hidden.parameters()), "lr": 0.01})
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        watch.seen.append(loss.item())
        watch.note(loss, state(model, optimizer))


@feature("EMA and SWA copies")
def ema(watch: Watch) -> None:
    model = watch.net()
    optimizer = sgd(model)
    loss_fn = watch.attach(model, optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    copies = []
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        copies.append(copy.deepcopy(model).eval())
        with torch.no_grad():
            seen = [copies[-1](*batch[:1], y=batch[1]), average(*batch[:1], y=batch[1])]
        watch.seen.append(loss.item())
        watch.note(loss, seen, state(model, optimizer), state(average))


def _compiled(
    watch: Watch, wrap_model: Any = None, wrap_loss: Any = None, wrap_step: Any = None
) -> None:
    torch._dynamo.reset()
    model = Plain()
    optimizer = sgd(model, momentum=0.9)
    called = wrap_model(model) if wrap_model else model
    loss = wrap_loss(cross_entropy) if wrap_loss else cross_entropy
    loss_fn = watch.attach(called, optimizer, loss)
    step = wrap_step(optimizer.step) if wrap_step else optimizer.step
    with torch._dynamo.config.patch(error_on_recompile=wrap_step is None):
        for batch in batches(STEPS):
            optimizer.zero_grad()
            loss = loss_fn(called, batch)
            loss.backward()
            step()
            watch.seen.append(loss.item())
            watch.note(loss, state(model, optimizer))


class Plain(nn.Module):
    """A network that compiles into one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.norm, self.head = nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.hidden(x.flatten(1)))))


def _compile(function: Any) -> Any:
    return torch.compile(function, backend="aot_eager")


@feature("torch.compile of the model", surfaces=False)
def compiled_model(watch: Watch) -> None:
    _compiled(watch, wrap_model=_compile)


@feature("torch.compile of the loss", surfaces=False)
def compiled_loss(watch: Watch) -> None:
    _compiled(watch, wrap_loss=_compile)


@feature("torch.compile of the step", surfaces=False)
def compiled_step(watch: Watch) -> None:
    _compiled(watch, wrap_step=lambda step: torch.compile(step, backend="eager"))


@feature("channels last", surfaces=False)
def channels_last(watch: Watch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 4),
        nn.Flatten(),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = sgd(model)
    loss_fn = watch.attach(model, optimizer)
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(model, (x.to(memory_format=torch.channels_last), y))
        loss.backward()
        optimizer.step()
        watch.seen.append(loss.item())
        watch.note(loss, state(model, optimizer), [p.stride() for p in model.parameters()])


@feature("inference_mode validation")
def validation(watch: Watch) -> None:
    model = watch.net()
    optimizer = sgd(model)
    loss_fn = watch.attach(model, optimizer)
    for batch in batches(STEPS):
        model.train()
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        model.eval()
        with torch.inference_mode():
            other = loss_fn(model, batches(2)[1])
            optimizer.step()
        watch.seen.append(loss.item())
        watch.note(loss, other, state(model, optimizer))


@feature("GAN alternation", surfaces=False)
def gan(watch: Watch) -> None:
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))
    judge = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    first, second = sgd(judge, 0.1), sgd(maker, 0.1)
    seen: list[Any] = []
    judge[0].register_forward_hook(lambda *_: seen.append("judged"))

    def judging(judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()

    def making(maker: nn.Module, noise: Tensor) -> Tensor:
        return F.softplus(-judge(maker(noise))).mean()  # the judge comes out of the closure

    judge_loss, maker_loss = (
        watch.attach(judge, first, judging),
        watch.attach(maker, second, making),
    )
    for x, _ in batches(STEPS):
        noise = torch.randn(8, 4)
        for optimizer, loss_fn, model, args in (
            (first, judge_loss, judge, (x.flatten(1), maker(noise).detach())),
            (second, maker_loss, maker, (noise,)),
        ):
            optimizer.zero_grad()
            loss = loss_fn(model, *args)
            loss.backward()
            optimizer.step()
            watch.seen.append(loss.item())
        watch.note(seen, state(maker, second), state(judge, first))


@feature("batches of changing shape")
def changing(watch: Watch) -> None:
    """Reinforcement learning: rollouts of any length, several epochs over each."""
    model = watch.net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_fn = watch.attach(model, optimizer)
    for length in (4, 7, 3):
        for x, y in batches(1, length) * 2:
            optimizer.zero_grad()
            loss = loss_fn(model, (x, y))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            watch.seen.append(loss.item())
            watch.note(loss, state(model, optimizer))


@feature("gradient checkpointing", surfaces=False)
def checkpointed(watch: Watch) -> None:
    model = watch.net()
    optimizer = sgd(model)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        hidden = checkpoint(model.features, batch[0], use_reentrant=False)
        return F.cross_entropy(model.head(hidden), batch[1])

    loss_fn = watch.attach(model, optimizer, loss)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss_value = loss_fn(model, batch)
        loss_value.backward()
        optimizer.step()
        watch.seen.append(loss_value.item())
        watch.note(loss_value, state(model, optimizer))


@feature("teacher in the closure", surfaces=False)
def teacher(watch: Watch) -> None:
    """A module that the loss finds in its closure, with running statistics and hooks of its own."""
    model = watch.net()
    other, optimizer, seen = copy.deepcopy(model), sgd(model), []
    other.norm.register_forward_hook(lambda *_: seen.append("teacher"))
    other.head.weight.register_hook(lambda g: seen.append("teacher's gradient"))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), other(batch[0])) + cross_entropy(model, batch)

    loss_fn = watch.attach(model, optimizer, loss)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss_value = loss_fn(model, batch)
        loss_value.backward()
        optimizer.step()
        watch.seen.append(loss_value.item())
        watch.note(loss_value, seen, state(model, optimizer), state(other))


@feature("hooks of the user's")
def hooks(watch: Watch) -> None:
    fired: list[str] = []
    torch_module = torch.nn.modules.module
    everywhere = torch_module.register_module_forward_hook(lambda *_: fired.append("global"))
    backward = torch_module.register_module_full_backward_hook(lambda *_: fired.append("global b"))

    def hooked(model: nn.Module) -> torch.optim.Optimizer:
        model.hidden.register_forward_pre_hook(lambda *_: fired.append("pre"))
        model.hidden.register_forward_hook(lambda *_: fired.append("forward"))
        model.head.register_full_backward_hook(lambda *_: fired.append("backward"))
        model.head.weight.register_hook(lambda g: fired.append("tensor"))
        model.head.bias.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
        model.register_forward_hook(lambda *_: fired.append("model"))
        optimizer = sgd(model)
        optimizer.register_step_post_hook(lambda *_: fired.append("step"))
        return optimizer

    try:
        plain(watch, hooked, after=lambda *_: watch.note(fired))
    finally:
        everywhere.remove(), backward.remove()
