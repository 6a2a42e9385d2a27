"""Small pictures as SVG: points and lines on linear axes, panels side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[Sequence[float]]  # (x, y) each
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#7f7f7f", "#17becf", "#bcbd22")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 260, 52, 12, 28, 42


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes; series of the same name have the same colour in every panel."""

    title: str
    x: str
    y: str
    series: dict[str, Points]
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    lines: bool = False
    level: float | None = None  # a dashed line at this y
    ticks: tuple[int, int] = (4, 4)  # along x, along y


def picture(panels: Sequence[Panel], said: str) -> str:
    """The SVG text; `said` is what it shows, for those who do not see it."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    wide, high = WIDTH * len(panels), HEIGHT + 20 * ((len(names) + 2) // 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{escape(said)}" font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
    ]
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({WIDTH * i},0)">', *_drawn(panel, colour), "</g>"]
    for i, name in enumerate(names):
        x, y = LEFT + (i % 3) * (wide - LEFT) / 3, HEIGHT + 20 * (i // 3) + 6
        parts.append(f'<circle cx="{x:.0f}" cy="{y}" r="4" fill="{colour[name]}"/>')
        parts.append(f'<text x="{x + 9:.0f}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(panel: Panel, colour: dict[str, str]) -> list[str]:
    (x0, x1), (y0, y1) = panel.xlim, panel.ylim
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = lambda v: LEFT + (v - x0) / (x1 - x0) * (right - LEFT)
    up = lambda v: low - (v - y0) / (y1 - y0) * (low - TOP)
    middle = (LEFT + right) / 2
    parts = [
        f'<text x="{middle}" y="16" text-anchor="middle" font-size="12">'
        f"{escape(panel.title)}</text>",
        f'<path d="M{LEFT} {TOP}V{low}H{right}" fill="none" stroke="#888"/>',
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.x)}</text>',
        f'<text transform="translate(14,{(TOP + low) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y)}</text>",
    ]
    for x in _even(panel.xlim, panel.ticks[0]):
        place = f'x="{across(x):.1f}" y="{low + 14}" text-anchor="middle"'
        parts.append(f"<text {place}>{x:.4g}</text>")
    for y in _even(panel.ylim, panel.ticks[1]):
        place = f'x="{LEFT - 5}" y="{up(y) + 4:.1f}" text-anchor="end"'
        parts.append(f"<text {place}>{y:.4g}</text>")
    if panel.level is not None:
        at = up(panel.level)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#888" stroke-dasharray="4 3"/>')
    for name, points in panel.series.items():
        places = [f"{across(x):.1f} {up(y):.1f}" for x, y in points]
        if panel.lines:
            way = "M" + "L".join(places)
            parts.append(
                f'<path d="{way}" fill="none" stroke="{colour[name]}" stroke-width="1.5"/>'
            )
        else:
            for place in places:
                x, y = place.split()
                parts.append(
                    f'<circle cx="{x}" cy="{y}" r="3" fill="{colour[name]}" fill-opacity="0.65"/>'
                )
    return parts


def _even(limits: tuple[float, float], steps: int) -> list[float]:
    return [limits[0] + (limits[1] - limits[0]) * k / steps for k in range(steps + 1)]
