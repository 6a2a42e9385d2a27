"""README's pictures: panels of the demo's own page, drawn by a headless chromium."""

import argparse
import subprocess
import tempfile
from pathlib import Path

from eqtoolbox.command.cli import main

HERE = Path(__file__).parents[1] / "docs/pictures"
PICTURES = {
    "curvature": (("eigenvalues",), (900, 465)),
    "charges": (("causes-rescale", "units-rescale"), (900, 435)),
}
CSS = """<style>
header, h2, footer, nav, .bar, .cards, .tools {{ display: none !important }}
section > :not(.panels) {{ display: none !important }}
body, main, section, .panels, .panel {{ border: 0 !important; margin: 0 !important }}
main, section {{ padding: 6px 12px !important; max-width: none !important }}
.panel {{ grid-column: {column} !important }}
.panel:not(:has({panels})) {{ display: none !important }}
section:not(:has({panels})) {{ display: none !important }}
</style>"""


def draw(page: Path, browser: str) -> None:
    """Each picture from a page that shows its panels alone."""
    for name, (panels, (width, height)) in PICTURES.items():
        column = "auto" if len(panels) > 1 else "1 / -1"
        css = CSS.format(panels=", ".join(f"#{panel}" for panel in panels), column=column)
        shown = page.with_name(f"{name}.html")
        shown.write_text(page.read_text().replace("</head>", f"{css}</head>", 1))
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--virtual-time-budget=10000", f"--window-size={width},{height}",
            f"--screenshot={HERE / name}.png", shown.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="of a demo that has run (default: run it now)")
    parser.add_argument("--browser", default="chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if given.page is None:
            main(["demo", "--run-dir", str(run)])
        page = Path(folder) / "page.html"
        page.write_text((given.page or run / "report.html").read_text())
        draw(page, given.browser)
