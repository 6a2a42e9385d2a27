"""The notebooks run, tell what is so, and are what their sources make."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/notebooks"
MAKER = ROOT / ".ci/notebooks.py"
STORIES = {  # what the text around the cells says, of names that they leave
    "unstable": "accuracy < 0.6 and warm_accuracy > 0.9 and calm_accuracy > 0.9 and not dead "
    "and stuck.findings()[0].id == 'dead-units' and loss[-1] > 1 "
    "and stuck.series('curvature/stability')[1][0] < 1 < stuck.series('curvature/stability')[1][2] "
    "and stability.max() < 1",
    "molecules": "found.layer == 'bend' and result.verdict == 'violated' and passed "
    "and result.relative_error > 1e3 * result.floor and right[2].verdict == 'holds' "
    "and wrong[2].relative_error > 10 * result.relative_error and wrong[1] > 100 * right[1] "
    "and abs(right[0] - wrong[0]) < 0.1",
    "dynamics": "abs(drift_power - 1) < 0.1 and abs(first_power - 2) < 0.05 "
    "and shares['weight decay']['decay'] > 0.9 and shares['momentum']['optimizer'] > 0.5 "
    "and last(decayed, 'drift') > 10 * last(runs[2], 'drift') and closure < 1e-12 "
    "and abs(last(coarse, 'drift') / last(decayed, 'drift') - 1) < 0.1 "
    "and abs(last(checked, 'drift') / wanted - 1) < 0.1",
    "rank": "max(ranks.values()) <= 16 and accuracy(network, lying) < 0.3 "
    "and measured > whole - 0.05 and smaller < measured - 0.1",
}
RUN = """
import importlib.util, sys
found = importlib.util.spec_from_file_location("maker", sys.argv[1])
maker = importlib.util.module_from_spec(found)
found.loader.exec_module(maker)
names = {"__name__": "__main__"}
maker.notebook(sys.argv[2], names)
assert eval(sys.argv[3], names), "the text says otherwise"
"""

found = importlib.util.spec_from_file_location("maker", MAKER)
assert found is not None and found.loader is not None
maker = importlib.util.module_from_spec(found)
found.loader.exec_module(maker)


def performed(name: str, story: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(MAKER), name, story],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_a_notebook_runs_and_its_text_is_true(name: str, tmp_path: Path) -> None:
    for package in ("sklearn", "plotly", *(["ase"] if name == "molecules" else [])):
        pytest.importorskip(package)
    done = performed(name, STORIES[name], tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_notebook_has_a_story_that_is_checked() -> None:
    assert sorted(maker.sources()) == sorted(STORIES)
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == set(STORIES)


@pytest.mark.parametrize("name", STORIES)
def test_a_notebook_is_its_source_with_what_it_gave(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    made = json.loads(path.read_text())
    cells = [(c["cell_type"], c["source"]) for c in made["cells"]]
    assert cells == maker.cells((FOLDER / f"{name}.py").read_text()), (
        f"write it anew: python .ci/notebooks.py {name}"
    )
    assert path.stat().st_size < 200_000
    for cell in made["cells"]:
        if cell["cell_type"] == "code" and "print(" in cell["source"].splitlines()[-1]:
            assert cell["outputs"], cell["source"]
    assert not re.search(r"https?://|/home/|/tmp/|/root/|Traceback", path.read_text())


def test_cells_give_what_they_print_and_what_their_last_line_is() -> None:
    names: dict[str, object] = {}
    text = "# %% [markdown]\n# # Head\n#\n# text\n# %%\nx = 1\nprint(x)\nx + 1\n"
    assert maker.cells(text) == [("markdown", "# Head\n\ntext"), ("code", "x = 1\nprint(x)\nx + 1")]
    printed, value = maker.perform("x = 1\nprint(x)\nx + 1", names, draw=False)
    assert printed["text"] == "1\n" and value["data"]["text/plain"] == "2" and names["x"] == 1
    with pytest.raises(ZeroDivisionError):
        maker.perform("1 / 0", {}, draw=False)


@pytest.mark.parametrize("name", STORIES)
def test_the_page_of_a_notebook_has_its_cells_and_pictures(name: str) -> None:
    made = json.loads((FOLDER / f"{name}.ipynb").read_text())
    text, pictures = maker.page(name, made)
    assert all(cell["source"] in text for cell in made["cells"])
    assert all(f"({file})" in text and data[:4] == b"\x89PNG" for file, data in pictures.items())
    assert f"notebooks/{name}.md" in (ROOT / "mkdocs.yml").read_text()
    for link in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (FOLDER / link).is_file(), link
