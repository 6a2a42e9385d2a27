"""CONTRIBUTING's examples, made in a copy of the repository, pass their laws and fail with a fault.

Each section that says `The law then says` is one example. What it says is what is done: new files,
lines below or above a line that is there once, and a fault that exchanges one line.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_architecture import FLOORS

HERE = Path(__file__).parents[1]
TEXT = (HERE / "CONTRIBUTING.md").read_text()
BLOCK = r":\n\n```(\w+)\n(.*?)```\n"
NEW = re.compile(r"^New file `([^`]+)`" + BLOCK, re.S | re.M)
LINES = re.compile(r"^In `([^`]+)`, (below|above) `([^`]+)`" + BLOCK, re.S | re.M)
FAULT = re.compile(r"^The fault, in `([^`]+)`" + BLOCK, re.S | re.M)
LAW = re.compile(r"^```bash\npython -m pytest ([^\n]+)\n```\n", re.M)
SAYS = re.compile(r"^The law then says `([^`]+)`\.$", re.M)

# all commands in one process, which imports torch once
RUN = """
import contextlib, io, json, sys, eqtoolbox, pytest
found = {"house": eqtoolbox.__file__}
for name, command in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*command, "-p", "no:cacheprovider"])
    found[name] = [int(code), said.getvalue()]
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One task: what is written, which law looks at it, what makes it fail."""

    new: tuple[tuple[str, str], ...]  # path, text
    lines: tuple[tuple[str, str, str, str], ...]  # path, below or above, line, text
    law: tuple[str, ...]  # arguments of pytest
    fault: tuple[str, str, str]  # path, right line, wrong line
    says: str

    def make(self, root: Path) -> None:
        for path, text in self.new:
            assert not (root / path).exists(), path
            (root / path).write_text(text)
        for path, side, line, text in self.lines:
            apart = text.startswith(("class ", "def "))
            text = f"\n\n{text}" if apart else text
            both = f"{line}\n{text}" if side == "below" else f"{text}{line}\n"
            exchange(root / path, f"{line}\n", both)

    def spoil(self, root: Path) -> None:
        path, right, wrong = self.fault
        exchange(root / path, right, wrong)


def exchange(path: Path, old: str, new: str) -> None:
    """Put `new` in the place of whole lines that are in the file once."""
    text = "\n" + path.read_text()
    assert text.count("\n" + old) == 1, f"{path}: expected once, as a whole line: {old!r}"
    path.write_text(text.replace("\n" + old, "\n" + new)[1:])


def read(section: str) -> Example:
    """The example that a section tells; every block in it is one of the forms."""
    new, lines, (fault,), (law,), (says,) = (
        form.findall(section) for form in (NEW, LINES, FAULT, LAW, SAYS)
    )
    told = len(new) + len(lines) + 2
    assert section.count("\n```") == 2 * told, "a block that is neither file, line, law nor fault"
    right, wrong = (re.findall(rf"^[{sign}](.*\n)", fault[2], re.M) for sign in "-+")
    assert (len(right), len(wrong)) == (1, 1)
    return Example(
        new=tuple((path, text) for path, _, text in new),
        lines=tuple((*where, re.sub(r"(?m)^\+", "", text)) for *where, _, text in lines),
        law=tuple(shlex.split(law)),
        fault=(fault[0], right[0], wrong[0]),
        says=says,
    )


EXAMPLES = {
    section.split("\n", 1)[0].lower(): read(section)
    for section in re.split(r"^## ", TEXT, flags=re.M)
    if "The law then says" in section
}


def judged(root: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of every example's law, run in this copy."""
    commands = {name: example.law for name, example in EXAMPLES.items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTEST_ADDOPTS": ""},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found.pop("house")).is_relative_to(root)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with all examples in it."""
    root = tmp_path_factory.mktemp("house")
    without = shutil.ignore_patterns("__pycache__")
    for part in ("eqtoolbox", "tests", "configs"):
        shutil.copytree(HERE / part, root / part, ignore=without)
    for part in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(HERE / part, root / part)
    for example in EXAMPLES.values():
        example.make(root)
    return root


@pytest.fixture(scope="module")
def right(copy: Path) -> dict[str, tuple[int, str]]:
    return judged(copy)


@pytest.fixture(scope="module")
def wrong(copy: Path, right: object, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same with every fault, in a copy of the copy: each law runs only its own example."""
    root = tmp_path_factory.mktemp("spoilt") / "house"
    shutil.copytree(copy, root)
    for example in EXAMPLES.values():
        example.spoil(root)
    return judged(root)


def test_there_is_an_example_of_every_task() -> None:
    wanted = "probe", "family", "group", "action", "sink", "finding", "integration"
    assert [name.split()[-1] for name in EXAMPLES] == list(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_its_law(name: str, right: dict[str, tuple[int, str]]) -> None:
    code, said = right[name]
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_with_its_fault_fails_its_law(
    name: str, wrong: dict[str, tuple[int, str]]
) -> None:
    code, said = wrong[name]
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert EXAMPLES[name].says in said


def test_examples_are_lint_clean_and_keep_the_house_in_order(copy: Path) -> None:
    files = [path for example in EXAMPLES.values() for path, _ in example.new]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files],
            cwd=copy, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    house = ["-m", "pytest", "tests/test_architecture.py"]
    done = subprocess.run([sys.executable, *house], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/house.md"])
def test_the_house_is_told_as_it_is_measured(page: str) -> None:
    told = re.findall(r"^\| (\d) \| ([^|]*) \|", (HERE / page).read_text(), re.M)
    floors = {int(n): set(re.findall(r"`(\w+)`", rooms)) - {"__init__"} for n, rooms in told}
    measured = [rooms - {"eqtoolbox"} for rooms in FLOORS]
    assert floors == dict(enumerate(measured[1:-1], 1)), "moved lies below, __main__ above"


def test_a_section_that_hides_a_block_is_refused() -> None:
    whole = next(s for s in re.split(r"^## ", TEXT, flags=re.M) if "The law then says" in s)
    with pytest.raises(AssertionError, match="a block that is neither"):
        read(whole + "\n```python\nx = 1\n```\n")
    with pytest.raises(ValueError, match="not enough values"):
        read(whole.replace("The fault, in", "A fault of"))
