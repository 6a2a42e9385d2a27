"""Loop: trains the model of a case, and digests after each step all that must not change."""

import contextlib
import copy
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.neutrality.random_loops.case import Case
from tests.neutrality.random_loops.data import Images, batches
from tests.neutrality.random_loops.digest import Walk
from tests.neutrality.random_loops.hooks import HOOKS
from tests.neutrality.random_loops.losses import LOSSES, Batch
from tests.neutrality.random_loops.net import Net
from tests.neutrality.random_loops.optimizers import CLOSURES, SCHEDULERS, optimizers
from tests.neutrality.random_loops.piece import Memory
from tests.neutrality.random_loops.process import hook_tables, process, streams
from tests.neutrality.random_loops.tensors import collected

STEPS = 3
Attach = Callable[["Loop"], Any]  # gives a monitor


class Loop:
    """A model, a loss, optimizers and what else trains, made from the case's seed alone."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(case.seed), np.random.seed(case.seed), random.seed(case.seed)
        self.model = Net(case)
        if case.double:
            self.model.double()
        self.loss: Any = LOSSES[case.loss].make(self.model)
        self.pair = LOSSES[case.loss].criterion
        if case.surface == "model returns its loss":
            self.model.criterion = self.loss
        self.optimizers = optimizers(case.optimizer, self.model, case.groups, dict(case.options))
        self.schedulers = [SCHEDULERS[case.scheduler](o) for o in self.optimizers if case.scheduler]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if case.scaler else None
        self.log: list[Any] = []
        self.handles = [HOOKS[h](self.model, self.optimizers, self.log) for h in case.hooks]
        self.average = self._average() if case.average else None
        self.called: Any = (
            torch.compile(self.model, backend="eager") if case.compiled else self.model
        )
        self.memories = [m for m in self.model.modules() if isinstance(m, Memory)]
        self.held = [dict(vars(m)) for m in self.memories]  # as somebody else would hold them
        self.monitor: Any = None
        self.function: Any = self.evaluate
        self.trail: list[dict[str, str]] = []

    def _average(self) -> Any:
        decay = get_ema_multi_avg_fn(0.9)
        return AveragedModel(copy.deepcopy(self.model), multi_avg_fn=decay, use_buffers=True)

    def evaluate(self, model: nn.Module, batch: Batch) -> Any:
        """The loss as the user wrote it."""
        if self.model.criterion is not None:
            return model(batch[0], batch[1])
        return self.loss(model(batch[0]), batch[1]) if self.pair else self.loss(model, batch)

    def run(self, attach: Attach | None = None) -> list[dict[str, str]]:
        """Train, under the monitor of `attach` where one is given; digests by step and part."""
        case = self.case
        images = Images(6 * STEPS * case.accumulation, case.seed, case.double, case.augmented)
        try:
            with contextlib.ExitStack() as scope:
                if case.deterministic:
                    torch.use_deterministic_algorithms(True)
                    scope.callback(torch.use_deterministic_algorithms, False)
                if case.anomaly:
                    scope.enter_context(torch.autograd.set_detect_anomaly(True))
                self.monitor = attach(self) if attach else None
                data = batches(images, case.loader)
                scope.callback(data.close)
                for _ in range(STEPS):
                    self._step(list(islice(data, case.accumulation)))
                self._close()
        finally:
            for handle in self.handles:
                handle.remove()
        return self.trail

    def _close(self) -> None:
        if self.monitor:
            self.monitor.close()
        walk, modules = Walk(), self._modules()
        self.trail.append(
            {
                "hooks left": walk.part([hook_tables(m) for m in [*modules, *self.optimizers]]),
                "attributes left": walk.part([sorted(vars(o)) for o in self.optimizers]),
            }
        )

    def _step(self, given: list[Batch]) -> None:
        self._at("before the forward")
        if self.case.optimizer in CLOSURES:
            loss = self.optimizers[0].step(lambda: self._backward(given))
        else:
            loss = self._backward(given)
            self._at("before the step")
            self._move()
        self._at("after the step")
        self._after(given[-1], loss.detach())
        self.note(loss)

    def _backward(self, given: list[Batch]) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.case.set_to_none)
        total: Any = 0.0
        for batch in given:
            if self.case.surface == "loss_fn" and self.monitor:
                self.monitor.observe(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast):
                result = self.function(self.called, batch)
                result = result["loss"] if isinstance(result, dict) else result
                loss = (result + 0.1 * collected(self.model)) / len(given)
            self._at("before the backward")
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            total = total + loss.detach()
        return total

    def _move(self) -> None:
        trained = [p for p in self.model.parameters() if p.grad is not None]
        for optimizer in self.optimizers:
            if self.scaler:
                self.scaler.unscale_(optimizer)
        if self.case.clip == "norm":
            nn.utils.clip_grad_norm_(trained, 0.1)
        elif self.case.clip == "value":
            nn.utils.clip_grad_value_(trained, 0.01)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer) if self.scaler else optimizer.step()
        if self.scaler:
            self.scaler.update()

    def _after(self, batch: Batch, loss: Tensor) -> None:
        if hasattr(self.loss, "after"):
            self.loss.after(batch)
        if self.average is not None:
            self.average.update_parameters(self.model)
        for scheduler in self.schedulers:
            scheduler.step(*([float(loss)] if self.case.scheduler == "plateau" else []))
        if self.case.evaluates:
            self.model.eval()
            with torch.no_grad():
                self.log.append(float(self.called(batch[0]).float().sum()))
            collected(self.model)
            self.model.train()

    def _at(self, place: str) -> None:
        """The loop is at this place."""
        if self.monitor and self.case.probe_now == place:
            with contextlib.suppress(ValueError):  # nothing is known yet
                self.monitor.probe_now()

    def _modules(self) -> list[nn.Module]:
        second = [m for m in vars(self.loss).values() if isinstance(m, nn.Module)]
        own = [self.loss] if isinstance(self.loss, nn.Module) else second
        return [m for root in (self.model, *own) for m in root.modules()]

    def note(self, loss: Tensor) -> None:
        """Digest everything that could have changed."""
        walk = Walk()
        parameters = [(n, p.detach(), p.requires_grad) for n, p in self.model.named_parameters()]
        ours = [hook_tables(m, without="eqtoolbox") for m in [*self._modules(), *self.optimizers]]
        digests = {
            "loss": walk.part(loss.detach()),
            "parameters": walk.part(parameters),
            "gradients": walk.part([p.grad for p in self.model.parameters()]),
            "optimizer": walk.part([(o.state_dict(), o.defaults) for o in self.optimizers]),
            "model": walk.part(self.model),
            "held": walk.part(self.held),
            "outside": walk.part([m.look() for m in self.memories]),
            "loss function": walk.part(self.loss),
            "hooks": walk.part(ours),
            "log": walk.part(self.log),
            "average": walk.part(self.average),
            "scheduler": walk.part([_plain(s.state_dict()) for s in self.schedulers]),
            "scaler": walk.part(self.scaler.state_dict() if self.scaler else None),
        }
        if not self.case.threads:
            digests |= {"streams": walk.part(streams()), "process": process()}
        self.trail.append(digests)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without the note of how `step` is wrapped."""
    return {k: v for k, v in state.items() if k != "_get_lr_called_within_step"}
