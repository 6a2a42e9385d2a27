"""What a program counts in a module of its own."""

from typing import Any

COUNT = 0
HISTORY: list[int] = []
HELD: Any = None
