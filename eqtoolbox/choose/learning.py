"""What is learned and how it is judged: loss and score by the kind of the targets, and a recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.expect.deadline import check
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.reading import Reading, closed, opened
from eqtoolbox.replay.streams import random_streams
from eqtoolbox.symmetry.structure import (
    Layout,
    Tree,
    batch_size,
    floating,
    like_outputs,
    on_tensors,
    tensors,
)

_BATCH, _RATE = 32, 3e-3


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Samples, targets, a loss to fall and a score to rise."""

    inputs: Tree  # opened
    targets: Tree  # labels (n,), or values like the outputs
    like: Any  # the inputs in their own containers
    by_name: bool  # whether a dict holds arguments by their names
    loss: Callable[[Tree, Tree], Tensor]
    score: Callable[[Tree, Tree], float]  # that is told
    sharp: Callable[
        [Tree, Tree], float
    ]  # that decides, less noisy: p of labels, log error of values
    unit: str  # of the score: accuracy, relative error (with its sign turned), held-out loss
    classes: int | None  # outputs a sample where targets are labels
    train: "Recipe | Callable[[nn.Module, Any, Tree], Any]"
    own_loss: bool = False

    @classmethod
    def of(
        cls,
        ask: Reading,
        targets: Tree,
        outputs: Tree,
        loss: Callable[[Tree, Tree], Tensor] | None,
        train: "Recipe | Callable[[nn.Module, Any, Tree], Any]",
    ) -> "Learning":
        """Loss and score by the targets: labels are classified, values are fitted.

        Raises:
            ValueError: targets of another length, of one value, out of range or not finite.
        """
        inputs = opened(ask.like)
        count = batch_size(inputs)
        if not tensors(targets) or batch_size(targets) != count:
            got = batch_size(targets) if tensors(targets) else "none"
            raise ValueError(f"expected {count} targets, one a sample of the inputs, got {got}")
        for name, tree in (("inputs", inputs), ("targets", targets)):
            if any(not bool(torch.isfinite(t).all()) for t in floating(tree)):
                raise ValueError(f"{name} must be finite, got NaN or infinity; clean them first")
        if all(bool((t == t[:1]).all()) for t in tensors(targets)):
            raise ValueError("targets must differ, got one value for all samples: nothing to learn")
        labels = isinstance(targets, Tensor) and not targets.is_floating_point()
        outputs = on_tensors(lambda t: t[:1].expand(count, *t.shape[1:]), outputs)
        made = _labels(targets, outputs) if labels else _values(targets, outputs, loss)
        if loss is not None:
            fallen = lambda z, y: -float(loss(z, y))
            made = {"score": fallen} | made | {"loss": loss, "own_loss": True}
            made |= {"sharp": fallen} if labels else {}
        made.setdefault("sharp", made["score"])
        return cls(inputs=inputs, like=ask.like, by_name=ask.by_name, train=train, **made)

    def given(self, tree: Tree) -> Any:
        """A batch in the containers that the model takes."""
        return closed(tree, self.like)

    def answer(self, network: nn.Module, tree: Tree) -> Tree:
        """A network's outputs, opened; a tuple holds its arguments, a dict may by their names."""
        batch = self.given(tree)
        if self.by_name:
            return opened(network(**batch))
        return opened(network(*batch) if isinstance(tree, tuple) else network(batch))

    def part(self, rows: Tensor) -> tuple[Tree, Tree]:
        """Inputs and targets of some samples."""
        take = lambda t: t[rows.to(t.device)]
        return on_tensors(take, self.inputs), on_tensors(take, self.targets)

    def movable(self) -> Tree:
        """Targets that an output action can move: labels as rows of zeros and a one."""
        if self.classes is None:
            return self.targets
        return F.one_hot(self.targets, self.classes).to(floating(self.inputs)[0])

    def longer(self, times: int) -> "Learning":
        """The same with a recipe of so many times the steps; a recipe of one's own stays."""
        own = self.train
        return (
            self
            if not isinstance(own, Recipe)
            else replace(self, train=Recipe(steps=own.steps * times))
        )

    def learned(self, network: nn.Module, rows: Tensor, seed: int) -> nn.Module:
        """The network, trained on some samples and in evaluation mode."""
        inputs, targets = self.part(rows)
        with random_streams():
            torch.manual_seed(seed)
            if isinstance(self.train, Recipe):
                self.train.fit(network.train(), self, rows)
            else:
                self.train(network.train(), self.given(inputs), targets)
        return network.eval()

    def judged(self, network: nn.Module, rows: Tensor) -> tuple[float, float]:
        """Both scores on some samples."""
        inputs, targets = self.part(rows)
        with torch.no_grad():
            made = valued(self.answer, network, inputs)
            return self.score(made, targets), self.sharp(made, targets)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Adam at 0.003, falling to zero as a half cosine, in shuffled batches of 32."""

    steps: int

    def fit(self, network: nn.Module, learning: Learning, among: Tensor) -> None:
        """Train it on these samples."""
        weights = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=_RATE, fused=weights[0].device.type != "mps")
        annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        size = min(_BATCH, len(among))
        order = among[:0]
        for _ in range(self.steps):
            check()
            if len(order) < size:
                order = among[torch.randperm(len(among))]
            inputs, targets = learning.part(order[:size])
            order = order[size:]
            optimizer.zero_grad()
            loss = learning.loss(learning.answer(network, inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            annealed.step()


def _labels(targets: Tensor, outputs: Tree) -> dict[str, Any]:
    """What is learned of labels."""
    fits = isinstance(outputs, Tensor) and outputs.dim() == 2 and targets.dim() == 1
    if not fits:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"labels {tuple(targets.shape)} need one row of logits a sample, got outputs {got}; "
            "give floating-point targets like the outputs"
        )
    classes = outputs.shape[1]
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, as the model has {classes} outputs, got "
            f"{low} .. {high}"
        )
    return {
        "targets": targets.long(),
        "loss": F.cross_entropy,
        "score": lambda z, y: float((z.argmax(1) == y).double().mean()),
        "sharp": lambda z, y: float(z.softmax(1).gather(1, y[:, None]).double().mean()),
        "unit": "accuracy",
        "classes": classes,
    }


def _values(targets: Tree, outputs: Tree, loss: Any) -> dict[str, Any]:
    """What is learned of values like the outputs, or of others by a loss of one's own."""
    flat = isinstance(targets, Tensor) and isinstance(outputs, Tensor)
    if flat and targets.numel() == outputs.numel():
        targets = targets.reshape(outputs.shape)
    values = like_outputs(targets, outputs)
    if values is None and loss is None:
        raise ValueError(
            "targets must be labels, or floating-point values like the outputs; for others give "
            "loss="
        )
    if values is None:
        return {"targets": targets, "unit": "held-out loss", "classes": None}
    layout = Layout.of(values)

    def square(z: Tree, y: Tree) -> Tensor:
        return F.mse_loss(layout.pack(z), layout.pack(y))

    def relative(z: Tree, y: Tree) -> float:
        error = (layout.pack(z) - layout.pack(y)).double().square().sum()
        return -float((error / layout.pack(y).double().square().sum()).sqrt())

    return {
        "targets": values, "loss": square, "score": relative, "unit": "relative error",
        "sharp": lambda z, y: -math.log(max(-relative(z, y), 1e-12)),
        "classes": None,
    }  # fmt: skip
