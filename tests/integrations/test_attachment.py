"""The callbacks take the arguments of attach, and a missing framework names its extra."""

import ast
import inspect
import re
import runpy
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.attach.spelled import entries
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.probes import Conservation
from eqtoolbox.watch.options import Options

FRAMEWORKS = {
    "lightning": ("lightning", "pytorch_lightning"),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
    "ignite": ("ignite",),
    "keras": ("keras",),
}
INTEGRATIONS = Path(eq.__file__).parent / "integrations"


def keywords(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def test_attach_and_attachments_take_the_options_under_one_name_default_and_type() -> None:
    options = {f.name: f for f in fields(Options)}
    kinds = get_type_hints(Options)
    for function in (eq.attach, Attachment, Options):
        given = keywords(function)
        assert list(given) == list(options)
        assert {n: p.default for n, p in given.items()} == {
            n: o.default for n, o in options.items()
        }
    assert {n: p.annotation for n, p in keywords(eq.attach).items()} == kinds
    assert kinds["budget"] == (float | None), "without its bounds"
    assert list(inspect.signature(eq.attach).parameters)[:2] == ["model", "optimizer"]


def described(doc: str | None) -> list[str]:
    """Names that the `Args:` of a docstring begin with."""
    return re.findall(r"^    (\w+):", entries(doc), flags=re.MULTILINE)


def test_every_option_is_described_once_and_attach_shows_its_lines() -> None:
    names = [f.name for f in fields(Options)]
    assert described(Options.__doc__) == names
    assert described(eq.attach.__doc__) == ["model", "optimizer", *names]
    assert entries(Options.__doc__) in (eq.attach.__doc__ or "")
    assert described("It.\n\nArgs:\n    a: x\n\nReturns:\n    b: y") == ["a"]


def test_an_unknown_option_is_refused_by_the_name_of_the_function() -> None:
    with pytest.raises(
        TypeError, match=r"attach\(\) got an unexpected keyword argument 'bugdet'; .*'budget'\?"
    ):
        eq.attach(nn.Linear(1, 1), None, bugdet=0.1)  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError, match=r"attach\(\) missing a required argument: 'optimizer'"):
        eq.attach(nn.Linear(1, 1))  # type: ignore[call-arg]


OTHER = {
    "loss_fn": lambda model, batch: model(batch).sum(), "criterion": nn.MSELoss(),
    "probes": [Conservation()], "probe_batch": torch.ones(2, 2), "schedule": 3, "budget": 0.1,
    "allowance": 9.0, "steps": 5, "memory": 2.0,
    "probe_timeout": 7.0, "rank_timeout": 8.0, "run_dir": "run", "sinks": (print,), "select": "all",
    "histograms": True, "seed": 4, "on_error": "raise", "resume": True,
    "exist": "number", "sync": True,
}  # fmt: skip


def test_an_attachment_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(OTHER) == [f.name for f in fields(Options)]
    assert all(OTHER[f.name] != f.default for f in fields(Options))
    taken: list[dict[str, Any]] = []
    module = sys.modules[Attachment.__module__]
    monkeypatch.setattr(module, "attach", lambda *_, **given: taken.append(given) or MagicMock())
    Attachment(**OTHER).start(nn.Linear(1, 1), None, 0)
    assert taken == [OTHER]


def test_the_options_of_an_attachment_stay_as_they_were_checked() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'budget'"):
        Attachment().budget = 5  # type: ignore[misc]


def test_what_a_callback_was_given_reaches_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: dict[str, Any] = {}

    def stand_in(*_: Any, **given: Any) -> MagicMock:
        reached.update(given)
        return MagicMock()

    monkeypatch.setattr("eqtoolbox.integrations.attachment.attach", stand_in)
    wanted = {"budget": 0.5, "run_dir": "a", "resume": True, "sync": True, "seed": 3, "schedule": 7}
    Attachment(**wanted).start(nn.Linear(1, 1), None, 0)
    assert {name: reached[name] for name in wanted} == wanted
    assert set(reached) == {f.name for f in fields(Attachment) if f.init}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = FRAMEWORKS[name]
    for module in [m for m in sys.modules if m.split(".")[0] in missing] + list(missing):
        monkeypatch.setitem(sys.modules, module, None)
    wanted = (
        rf"eqtoolbox.integrations.{name} needs {missing[-1]}\S*: "
        rf'pip install "eqtoolbox\[{name}\]"'
    )
    with pytest.raises(ImportError, match=wanted):
        runpy.run_path(str(INTEGRATIONS / f"{name}.py"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Packages that a file imports."""
    return frozenset(
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    )


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_only_its_own_module_imports_a_framework(name: str) -> None:
    package = Path(eq.__file__).parent
    for path in package.rglob("*.py"):
        own = path.stem in (name, f"{name}_model") and path.parent == INTEGRATIONS
        assert own or not imported(path) & set(FRAMEWORKS[name]), path
