"""The examples of the documentation run, page by page and block after block."""

import re
from pathlib import Path

import pytest
import torch
import torch._dynamo  # whose first import makes a directory, which must not fall into a replay

from eqtoolbox.report.diagnosis.listed import markdown

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    str(path.relative_to(DOCS)): blocks
    for path in sorted(DOCS.rglob("*.md"))
    if path.name != "frameworks.md"  # whose examples run one by one: tests/integrations
    and (blocks := re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M))
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(PAGES[page]):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_how_to_shows_something_that_runs() -> None:
    pages = list((DOCS / "howto").glob("*.md"))
    assert len(pages) > 5 and all("```python" in p.read_text() for p in pages)


def test_every_page_is_in_the_plan_of_the_site() -> None:
    plan = (DOCS.parent / "mkdocs.yml").read_text()
    missing = [p for p in DOCS.rglob("*.md") if str(p.relative_to(DOCS)) not in plan]
    assert not missing


def test_the_page_of_diseases_is_the_table() -> None:
    assert (DOCS / "diseases.md").read_text() == markdown(), (
        "write it anew: python -c 'from eqtoolbox.report.diagnosis.listed import markdown; "
        'print(markdown(), end="")\' > docs/diseases.md'
    )


def test_pages_fetch_nothing_when_they_are_read() -> None:
    """No font, script or picture of another host: the pages are read where there is no network."""
    for path in [DOCS.parent / "mkdocs.yml", *DOCS.rglob("*.md"), *DOCS.rglob("*.css")]:
        assert not re.search(r"https?://", path.read_text()), path
