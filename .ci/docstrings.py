"""What the documentation's parser of docstrings does not know of ours: three habits."""

import importlib
import inspect
import re
from typing import Any

import griffe

SAID = re.compile(r"^    \w+: .*  # (.+)$")  # a field, and in a comment what it holds


class Habits(griffe.Extension):
    """`Example:` is the section that the parser knows as `Examples:`; fields speak in comments.

    A `spelled` function has the parameters of a class, which only the living one shows.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.is_alias or not obj.docstring:
            return
        if isinstance(obj, griffe.Function) and "spelled(" in " ".join(
            str(d.value) for d in obj.decorators
        ):
            spell(obj)
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


def spell(function: griffe.Function) -> None:
    """Give a function the parameters and the text that it has when it is imported."""
    living = getattr(importlib.import_module(function.module.path), function.name)
    shown = [
        griffe.Parameter(
            p.name,
            kind=griffe.ParameterKind[p.kind.name.lower()],
            annotation=re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(p.annotation)),
            default=None if p.default is p.empty else repr(p.default),
        )
        for p in inspect.signature(living).parameters.values()
    ]
    function.parameters = griffe.Parameters(*shown)
    function.docstring = griffe.Docstring(inspect.getdoc(living) or "", parent=function)
