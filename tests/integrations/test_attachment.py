"""The callbacks take the arguments of attach, and a missing framework names its extra."""

import ast
import inspect
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from torch import nn

import eqtoolbox as eq
from eqtoolbox.integrations.attachment import Attachment

FRAMEWORKS = {
    "lightning": ("lightning", "pytorch_lightning"),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
    "ignite": ("ignite",),
    "keras": ("keras",),
}
INTEGRATIONS = Path(eq.__file__).parent / "integrations"


def test_the_fields_of_an_attachment_are_the_arguments_of_attach() -> None:
    wanted = inspect.signature(eq.attach).parameters
    keywords = {n: p for n, p in wanted.items() if p.kind is p.KEYWORD_ONLY}
    given = {f.name: f for f in fields(Attachment) if f.init}
    assert list(given) == list(keywords)
    for name, parameter in keywords.items():
        assert given[name].default == parameter.default
        assert given[name].type == parameter.annotation


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


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_only_its_own_module_imports_a_framework(name: str) -> None:
    package = Path(eq.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        own = path.stem in (name, f"{name}_model") and path.parent == INTEGRATIONS
        assert own or not imported & set(FRAMEWORKS[name]), path
