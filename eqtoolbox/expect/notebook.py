"""What a notebook shows of an object: its text or its fields, escaped."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

_MOST = 8  # numbers of a list that are shown


def text(shown: object) -> str:
    """What `print` shows, letter for letter.

    Example:
        >>> text("a < b")
        '<pre>a &lt; b</pre>'
    """
    return f"<pre>{html.escape(str(shown))}</pre>"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Rows of cells.

    Example:
        >>> table([("gap", 2.5)])
        '<table><tr><td>gap</td><td>2.5</td></tr></table>'
    """
    lines = [_line(head, "th")] if head else []
    return f"<table>{''.join([*lines, *(_line(row, 'td') for row in rows)])}</table>"


def by_fields(result: Any) -> str:
    """The fields of a dataclass, a row each; `_repr_html_` of results."""
    return table([(f.name, getattr(result, f.name)) for f in fields(result) if f.repr])


def _line(cells: Sequence[object], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(_said(c))}</{tag}>' for c in cells)}</tr>"


def _said(value: Any) -> str:
    """A value as short as it can be read: large arrays by their shape."""
    shape = getattr(value, "shape", None)
    if shape == ():
        return _said(value.item())
    if shape is not None:
        value = value.tolist() if len(shape) == 1 and shape[0] <= _MOST else tuple(shape)
        return f"shape {value}" if isinstance(value, tuple) else _said(value)
    if hasattr(value, "stderr") and hasattr(value, "value"):
        return f"{value.value:.4g} ± {value.stderr:.2g}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        held = all(isinstance(v, float | int | str) for v in value)
        return ", ".join(map(_said, value)) if held and len(value) <= _MOST else f"{len(value)}"
    return str(value)
