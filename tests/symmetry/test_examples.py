"""The examples in the docstrings of the data symmetries run."""

import doctest
import importlib

import pytest

MODULES = (
    "actions", "algebra", "alike", "asymmetry", "boosts", "candidates", "causes", "claim",
    "culprit", "each", "equivariance", "fields", "finite", "foreign", "group", "irregular",
    "layerwise", "lie", "linear", "matrices", "orbit", "permuting", "price", "resampling",
    "result", "scaling", "structure", "structured", "tangent", "unbounded",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"eqtoolbox.symmetry.{name}")
    assert doctest.testmod(module).failed == 0


def test_testing_and_audit_examples_run() -> None:
    for name in (
        "eqtoolbox.symmetry.testing",
        "eqtoolbox.symmetry.audit",
        "eqtoolbox.command.audit_table",
        "eqtoolbox.replay.reading",
    ):
        found = doctest.testmod(importlib.import_module(name))
        assert found.attempted > 0
        assert found.failed == 0


def test_a_wrong_example_fails() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda _: None).failed == 1
