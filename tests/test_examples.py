"""The examples in all docstrings of the package run, and those of decorated functions are found."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest

import eqtoolbox

PACKAGE = Path(eqtoolbox.__file__).parent
TEXTS = {
    ".".join(("eqtoolbox", *path.relative_to(PACKAGE).with_suffix("").parts)): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}
EXAMPLES = {
    n: text.count(">>> ") - text.count(">>> #") for n, text in TEXTS.items() if ">>> " in text
}
FRAMEWORKS = {
    f"integrations.{name}": name for name in ("keras", "lightning", "torchmetrics", "transformers")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str) -> None:
    pytest.importorskip(FRAMEWORKS.get(name.removeprefix("eqtoolbox."), "torch"))
    importlib.import_module(name)
    found = doctest.testmod(sys.modules[name])
    assert found.failed == 0
    assert found.attempted == EXAMPLES[name]


def test_a_wrong_example_fails() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda _: None).failed == 1
