"""What the documentation's parser of docstrings does not know of ours: two habits."""

import re
from typing import Any

import griffe

SAID = re.compile(r"^    \w+: .*  # (.+)$")  # a field, and in a comment what it holds


class Habits(griffe.Extension):
    """`Example:` is the section that the parser knows as `Examples:`; fields speak in comments."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.is_alias or not obj.docstring:
            return
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        if isinstance(obj, griffe.Class) and "\nArgs:\n" not in text:
            fields = [f"    {name}: {said}" for name, said in comments(obj)]
            text += "".join(["\n\nAttributes:\n", "\n".join(fields)]) if fields else ""
        obj.docstring.value = text


def comments(kind: griffe.Class) -> list[tuple[str, str]]:
    """Fields of a class with the comment behind them."""
    fields = [m for m in kind.members.values() if isinstance(m, griffe.Attribute)]
    said = [(f.name, SAID.match(f.lines[-1])) for f in fields if f.lines and not f.docstring]
    return [(name, found[1]) for name, found in said if found and not name.startswith("_")]
