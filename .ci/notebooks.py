"""Notebooks from their sources: docs/notebooks/NAME.py with `# %%` cells is run and written down.

`python .ci/notebooks.py [NAME ...]` writes docs/notebooks/NAME.ipynb with what its cells gave. As a
hook of MkDocs the file makes a page of each notebook when the documentation is built.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs/notebooks"
SIZE = 760, 400  # of a figure, in pixels
Cell = dict[str, Any]


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of every cell: code, or markdown without the signs of a comment."""
    found = []
    for part in re.split(r"(?m)^# %%", source)[1:]:
        head, _, text = part.partition("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        text = re.sub(r"(?m)^# ?", "", text) if kind == "markdown" else text
        found.append((kind, text.strip("\n")))
    return found


def perform(text: str, names: dict[str, Any], draw: bool) -> list[Cell]:
    """Run a cell in its namespace; what it prints and what its last line is, as outputs."""
    body = ast.parse(text).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    said = printed.getvalue()
    outputs = [{"output_type": "stream", "name": "stdout", "text": said}] if said else []
    if value is not None:
        figure = hasattr(value, "write_html")
        data = {"text/plain": "Figure" if figure else repr(value)}
        if figure and draw:
            data["image/png"] = base64.b64encode(picture(value)).decode()
        told = {"output_type": "execute_result", "execution_count": None, "metadata": {}}
        outputs.append({**told, "data": data})
    return outputs


def picture(figure: Any) -> bytes:
    """A figure of plotly as a PNG, by a headless chromium."""
    width, height = SIZE
    figure.update_layout(width=width, height=height, margin={"t": 70, "r": 20})
    with tempfile.TemporaryDirectory() as folder:
        page, png = Path(folder) / "figure.html", Path(folder) / "figure.png"
        figure.write_html(page, config={"displayModeBar": False})
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--virtual-time-budget=5000",
            f"--window-size={width + 16},{height + 16}", f"--screenshot={png}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return png.read_bytes()


def notebook(name: str, names: dict[str, Any], draw: bool = False) -> Cell:
    """The notebook of a source, run in `names` and in the working directory."""
    made = []
    for number, (kind, text) in enumerate(cells((FOLDER / f"{name}.py").read_text())):
        cell: Cell = {"cell_type": kind, "id": f"{name}-{number}", "metadata": {}, "source": text}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": perform(text, names, draw)}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def page(name: str, made: Cell) -> tuple[str, dict[str, bytes]]:
    """A notebook as markdown, with its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(f"```python\n{cell['source']}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws]({file})")
            else:
                said = output.get("text") or data["text/plain"]
                parts.append(f"```text\n{said.rstrip()}\n```")
    parts.append(f"[This page as a notebook]({name}.ipynb)")
    return "\n\n".join(parts) + "\n", pictures


def sources() -> Iterator[str]:
    return (path.stem for path in sorted(FOLDER.glob("*.py")))


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this before it reads the pages."""
    from mkdocs.structure.files import File

    for name in sources():
        text, pictures = page(name, json.loads((FOLDER / f"{name}.ipynb").read_text()))
        for file, content in {f"{name}.md": text, **pictures}.items():
            files.append(File.generated(config, f"notebooks/{file}", content=content))
    return files


def write(name: str) -> None:
    """Run a source in an empty directory and write its notebook."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        made = notebook(name, {"__name__": "__main__"}, draw=True)
    (FOLDER / f"{name}.ipynb").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which ones (default: all)")
    for chosen in parser.parse_args().names or sources():
        write(chosen)
