"""A search brings no compiler in: importing torch's takes longer than to search a small model."""

import subprocess
import sys

SEARCH = """
import sys, torch
from eqtoolbox.weights.discovery import discover
discover(torch.nn.Linear(3, 2), (torch.randn(4, 3), torch.arange(4) % 2))
print("torch._dynamo" in sys.modules)
"""


def test_a_search_does_not_import_the_compiler() -> None:
    command = [sys.executable, "-c", SEARCH]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]
