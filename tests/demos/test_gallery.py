"""The gallery shows every demo, with the sentences and the picture of its run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from eqtoolbox.command.demo.catalogue import DEMOS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gallery.md").read_text()
FOUND = json.loads((ROOT / "docs/pictures/gallery.json").read_text())
found = importlib.util.spec_from_file_location("gallery", ROOT / ".ci/gallery.py")
assert found is not None and found.loader is not None
gallery = importlib.util.module_from_spec(found)
found.loader.exec_module(gallery)


def test_the_page_is_what_the_runs_said() -> None:
    assert FOUND.keys() == DEMOS.keys() == gallery.QUESTIONS.keys()
    assert gallery.markdown(FOUND) == PAGE, "write it anew: python .ci/gallery.py"


@pytest.mark.parametrize("name", DEMOS)
def test_every_demo_has_its_question_numbers_picture_and_command(name: str) -> None:
    section = PAGE.split(f"\n## {name.capitalize()}\n")[1].split("\n## ")[0]
    assert gallery.QUESTIONS[name][0] in section and f"eqtoolbox demo {name}\n" in section
    assert len(re.findall(r"(?m)^- .*\d", section)) >= 2
    picture = (ROOT / f"docs/pictures/gallery/{name}.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) <= 60_000


def test_of_a_run_the_page_keeps_what_is_asked_and_how_networks_compare() -> None:
    finding = [{"text": "Rescale charges drifted"}, {"text": "Other"}]
    one = {"comparison": [], "runs": {"plain": {"findings": finding}}}
    assert gallery.said("digits", one) == {"said": ["Rescale charges drifted"]}
    two = {"comparison": ["best first"], "runs": {e: {"findings": finding} for e in "ab"}}
    assert gallery.said("robot", two) == {"said": ["best first"]}
