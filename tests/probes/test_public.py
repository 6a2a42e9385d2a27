"""What `eqtoolbox.probes` exports: each says what it is, is read from a file, and comes back."""

import ast
import doctest
import re
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox import probes
from eqtoolbox.attach.config import resolve
from eqtoolbox.attach.entry import KINDS
from eqtoolbox.attach.fields import kinds_of, written
from eqtoolbox.attach.spelled import entries
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Probe, topics
from eqtoolbox.watch.state import State

each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def described(kind: type) -> list[str]:
    """The options that the `Args:` of a class tell of."""
    return re.findall(r"^    (\w+):", entries(kind.__doc__), flags=re.MULTILINE)


def lines(kind: type) -> int:
    """Examples in its docstring."""
    return len(doctest.DocTestParser().get_examples(kind.__doc__ or ""))


def toml(value: Any) -> str:
    """A default as a file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value) if isinstance(value, tuple) else value)


def complaints(kind: type[Any]) -> list[str]:
    """What a probe lacks to be public."""
    found = []
    if not all(isinstance(getattr(kind, n, None), str) for n in ("name", "headline")):
        found.append("no name or headline")
    if getattr(kind, "mode", None) not in get_args(Mode):
        found.append("no mode")
    if not (is_dataclass(kind) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        found.append("not frozen")
    elif described(kind) != [f.name for f in fields(kind) if f.init]:
        found.append(f"options without words: Args are of {described(kind)}")
    if not lines(kind):
        found.append("no example")
    if kind.state is not None and not issubclass(kind.state, State):
        found.append("a state that no checkpoint keeps")
    return found


@each
def test_a_public_probe_lacks_nothing(kind: type[Probe]) -> None:
    assert complaints(kind) == []


def test_a_probe_that_lacks_something_is_caught() -> None:
    class Lacking(Probe):
        """Without words."""

        name, headline = "lacking", "all"
        state = dict  # type: ignore[assignment]

        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Any:
            return ()

    found = complaints(Lacking)
    assert found == ["no mode", "not frozen", "no example", "a state that no checkpoint keeps"]


@each
def test_defaults_written_to_a_file_are_the_probe_itself(kind: type[Any], tmp_path: Path) -> None:
    path, made = tmp_path / "a.toml", kind()
    options = [n for n, of in kinds_of(kind).items() if written(of)]
    rows = [f"{name} = {toml(getattr(made, name))}" for name in options]
    path.write_text("\n".join([f"[probes.{kind.name}]", "schedule = 3", *rows]))
    (read,) = resolve(path)
    assert read.probe == made
    assert set(options) >= {f.name for f in fields(kind)} - {"engine", "stability_scale"}


@each
def test_nonsense_is_refused_with_the_file_and_the_key(kind: type[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    options = [n for n, of in kinds_of(kind).items() if written(of)]
    for name in (*options, "no_such_option"):
        for nonsense in ("{a = 1}", "[[1]]", "1979-05-27"):
            path.write_text(f"[probes.{kind.name}]\n{name} = {nonsense}\n")
            with pytest.raises(ConfigError, match=rf"probes\.{kind.name}\.{name}") as caught:
                resolve(path)
            assert str(path) in str(caught.value)


@each
def test_a_state_comes_back_from_a_checkpoint(kind: type[Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probe, images, labels = kind(), torch.randn(8, 1, 6, 6), torch.arange(8) % 3
    monitor = eq.attach(
        model, optimizer, probes=[probe], criterion=(loss := nn.CrossEntropyLoss()), budget=None
    )
    for _ in range(2):
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["references"][kind.name]
    monitor.close()
    again = probe.restored(saved)
    if kind.state is None:
        assert again is saved
        return
    assert isinstance(again, kind.state)
    assert repr(again.state_dict()) == repr(saved)
    assert repr(saved) != repr(kind.state().state_dict()), "something is kept"


def test_the_room_of_probes_exports_probes_in_the_order_of_their_names() -> None:
    assert list(probes.__all__) == sorted(probes.__all__)
    assert all(issubclass(getattr(probes, name), Probe) for name in probes.__all__)
    tree = ast.parse(textwrap.dedent(Path(probes.__file__ or "").read_text()))
    imported = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(imported) == list(probes.__all__)


def test_a_run_has_the_topics_of_its_probes_each_once() -> None:
    class Mine(probes.Conservation):
        name = "mine"
        topic = object()

    class Other(Mine):
        name = "other"

    optimizer = torch.optim.SGD((model := nn.Linear(2, 1)).parameters(), lr=0.1)
    with eq.attach(model, optimizer, probes=[probes.Noether(), Mine(), Other()]) as monitor:
        assert topics(monitor.probes) == (Mine.topic,)
    assert topics(resolve("standard")) == ()
    assert get_type_hints(Probe)["topic"], "declared where probes are"
