"""The examples in the docstrings of what is decorated run, and are still found."""

import doctest
import importlib
import pkgutil

import pytest

import eqtoolbox.expect
import eqtoolbox.linalg

ROOMS = {"expect": eqtoolbox.expect, "linalg": eqtoolbox.linalg}
MODULES = [
    f"{room}.{m.name}" for room, p in ROOMS.items() for m in pkgutil.iter_modules(p.__path__)
]
SINGLE = [
    "attach.attach", "attach.source", "attach.spelled", "attach.toml", "command.checking",
    "attach.fields", "record.schedule", "watch.checkpoint", "watch.options", "watch.probe",
    "watch.state",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES + SINGLE)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"eqtoolbox.{name}")).failed == 0


@pytest.mark.parametrize("name", [*SINGLE, "linalg.lanczos", "linalg.operator", "expect.fit"])
def test_examples_of_decorated_functions_are_found(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"eqtoolbox.{name}")).attempted > 0
