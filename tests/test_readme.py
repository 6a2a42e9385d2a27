"""README's code runs as printed, and its commands are the two that it promises."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_readme_code_runs_as_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_has_exactly_two_commands() -> None:
    commands = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert "eqtoolbox demo" in commands[0]
    assert "pytest" in commands[1]


def test_readme_is_read_in_five_minutes_and_leads_to_what_is_there() -> None:
    assert len(README.split()) <= 900
    links = re.findall(r"\]\((?!https:)([^)]*)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_readme_names_every_preset_and_record() -> None:
    for word in ("light", "standard", "full", "curvature/stability", "skipped_budget"):
        assert word in README
