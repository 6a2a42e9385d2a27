"""The model that a command names: an import path or a configuration entry, with a batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.attach.source import named
from eqtoolbox.attach.toml import tables
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.streams import random_streams

_NEEDS = (
    "return (model, batch), (model, inputs, targets) or (model, batch, loss_fn) from the factory: "
    "symmetries are those of a computation, and this model's inputs cannot be guessed"
)


def load(text: str, folder: Path = Path()) -> tuple[nn.Module, Any, Any, str]:
    """(model, batch, loss_fn or None, remark) that `text` names.

    Args:
        text: `package.module:name` or `file.py:name`, where the name is a model, a class without
            arguments or a function that returns model, (model, batch), (model, inputs, targets)
            as for `[audit]`, or (model, batch, loss_fn); or a TOML file with a table [symmetries]
            whose `source` is such a reference.
        folder: that a `file.py` is in.

    Raises:
        ValueError: nothing such, or inputs that cannot be guessed; says the remedy.
    """
    if text.endswith(".toml"):
        path = reference(Path(text))
        made = named(path, Path(text).parent, f"{text}: symmetries.source")
    else:
        path = text
        made = named(path, folder, "model (or give a TOML file)")
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except TypeError as error:
            raise ValueError(f"{path} must be callable without arguments: {error}") from error
    if isinstance(made, nn.Module):
        batch = example_batch(made)
        return made, batch, None, "no batch given: random inputs and targets of a guessed shape"
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise ValueError(
            f"{path} must give a model, (model, batch), (model, inputs, targets) or "
            f"(model, batch, loss_fn), got {type(made).__name__}"
        )
    model, batch, last = (*made, None)[:3]
    if last is None or callable(last):
        return model, batch, last, ""
    return model, (batch, last), None, ""  # the last are targets


def reference(path: Path) -> str:
    """What the table [symmetries] of a file names; no code is run.

    Raises:
        ValueError: the file or the table is none.
    """
    options = tables(path).get("symmetries")
    if not isinstance(options, dict) or not isinstance(options.get("source"), str):
        raise ValueError(
            f'{path}: expected a table [symmetries] with source = "package.module:factory"'
        )
    return str(options["source"])


def example_batch(model: nn.Module) -> Any:
    """Inputs that the model runs on, guessed from its first layer with weights.

    Raises:
        ValueError: none of the guesses runs.

    Example:
        >>> example_batch(nn.Sequential(nn.Linear(3, 2))).shape
        torch.Size([8, 3])
    """
    given = getattr(model, "dummy_inputs", None)  # models of the transformers library
    if isinstance(given, Mapping) and "input_ids" in given:
        return {**given, "labels": given["input_ids"]}
    generator = torch.Generator().manual_seed(0)
    for shape, classes in _shapes(model):
        batch = torch.randn(shape, generator=generator)
        if classes:
            batch = torch.randint(0, classes, shape, generator=generator)
        if _runs(model, batch):
            return batch
    raise ValueError(_NEEDS)


def _shapes(model: nn.Module) -> list[tuple[tuple[int, ...], int]]:
    """Shapes to try, with the number of classes for tables of tokens."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding):
            return [((4, 16), layer.num_embeddings), ((4,), layer.num_embeddings)]
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            sizes = (32, 28, 64, 8, 224)
            dims = layer.weight.dim() - 2
            return [((4, layer.in_channels, *([n] * dims)), 0) for n in sizes]
        if isinstance(layer, nn.Linear):
            n = layer.in_features
            side = round(n**0.5)
            square = [((8, 1, side, side), 0)] if side**2 == n else []
            return [((8, n), 0), ((4, 7, n), 0), *square]
        if isinstance(layer, nn.RNNBase):
            return [((4, 7, layer.input_size), 0)]
    return []


def _runs(model: nn.Module, batch: Tensor) -> bool:
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad(), random_streams():
            made = valued(model.eval(), batch)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    finally:
        for module, mode in training.items():
            module.train(mode)
    return isinstance(getattr(made, "logits", made), Tensor)
