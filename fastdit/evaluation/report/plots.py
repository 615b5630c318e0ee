"""Plots of a report: speed-up against one quality, 95 % intervals in both directions, as PNG or as SVG for the page."""

import importlib
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from fastdit.evaluation.extras import require
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.report.columns import Column
from fastdit.evaluation.report.labels import place

Figure = Any  # of matplotlib, which is imported only to draw
SIZE = (5.8, 4.0)  # inches
DPI = 200
# on the page these are the page's own colours, so that a plot follows light and dark
INK, SOFT, LINE, ACCENT, PAPER = "#1f2328", "#656d76", "#d8dce0", "#0b63c5", "#fefefe"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", ACCENT: "--accent", PAPER: "--paper"}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "fastdit",  # equal reports give equal files
}


@dataclass(frozen=True)
class Point:
    """One run: its speed-up and its quality."""

    name: str
    x: Interval
    y: Interval
    dense: bool = False


def frontier(points: Sequence[Point], better: str) -> list[Point]:
    """The points that no other beats in both directions, by rising speed-up."""
    sign = 1 if better == "higher" else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x.value, -sign * p.y.value)):
        if not found or sign * point.y.value > sign * found[-1].y.value:
            found.append(point)
    return found[::-1]


def draw(points: Sequence[Point], x: Column, y: Column, note: str) -> Figure:
    """A figure of y against x; points on the frontier are filled and joined, the others hollow."""
    matplotlib = require("matplotlib", "a plot")
    agg, figures = (importlib.import_module(f"matplotlib.{name}") for name in ("backends.backend_agg", "figure"))
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=SIZE, facecolor=PAPER, layout="constrained")
        agg.FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor=PAPER)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(0.12, 0.14)
        axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1.5)
        if not any(point.dense for point in points):
            axes.annotate("dense", (1, 0), (4, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                          fontsize=8, color=SOFT)  # fmt: skip
        best = frontier(points, y.better)
        axes.plot(*zip(*[(p.x.value, p.y.value * y.scale) for p in best], strict=True), color=ACCENT, linewidth=1.2,
                  alpha=0.45, zorder=2)  # fmt: skip
        for point in points:
            _point(axes, point, y, point in best)
        axes.set_xlabel(f"{x.title} (x)")
        axes.set_ylabel(y.heading)
        # the corner to which one wants to go
        arrow = "\N{NORTH EAST ARROW}" if y.better == "higher" else "\N{SOUTH EAST ARROW}"
        axes.set_title(f"{note}", loc="left", fontsize=8, color=SOFT)
        axes.set_title(f"better {arrow}", loc="right", fontsize=8, color=SOFT)
        _label(figure, axes, points, y, best)
    return figure


def _point(axes: Any, point: Point, y: Column, filled: bool) -> None:
    color = INK if point.dense else ACCENT
    axes.errorbar(
        point.x.value,
        point.y.value * y.scale,
        xerr=_arms(point.x),
        yerr=_arms(point.y, y.scale),
        fmt="D" if point.dense else "o",
        markersize=5.5 if point.dense else 6,
        color=color,
        markerfacecolor=color if filled else PAPER,
        markeredgewidth=1.2,
        elinewidth=1,
        capsize=2.5,
        zorder=3,
    )


def _arms(interval: Interval, scale: float = 1.0) -> list[list[float]] | None:
    """Lengths of the error bars below and above."""
    if interval.low is None or interval.high is None:
        return None
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _label(figure: Any, axes: Any, points: Sequence[Point], y: Column, best: Sequence[Point]) -> None:
    """Each point's name, and a thin line where it stands far from its point."""
    figure.canvas.draw()  # the layout is made now, so that extents are known
    at = np.array([(point.x.value, point.y.value * y.scale) for point in points])
    texts = [axes.annotate(p.name, xy, (0, 0), textcoords="offset points", fontsize=8, color=INK, zorder=4)
             for p, xy in zip(points, at, strict=True)]  # fmt: skip
    sizes = [text.get_window_extent(figure.canvas.get_renderer()).size for text in texts]
    taken = [box for point in points for box in _boxes(axes, point, y)] + _line_boxes(axes, best, y)
    centres, unit = axes.transData.transform(at), figure.dpi / 72
    places = place(centres, np.array(sizes), np.array(taken), axes.get_window_extent().extents, unit)
    for text, centre, xy, one in zip(texts, centres, at, places, strict=True):
        text.set_position((one.box[:2] - centre) / unit)
        text.set_verticalalignment("bottom")
        if one.line_to is not None:
            line = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
            axes.annotate(
                "", xy, (one.line_to - centre) / unit, textcoords="offset points", arrowprops=line, zorder=2.5
            )


def _boxes(axes: Any, point: Point, y: Column) -> list[np.ndarray]:
    """Pixels (x0, y0, x1, y1) that a point and its bars cover."""

    def pixels(x: float, value: float) -> np.ndarray:
        found: np.ndarray = axes.transData.transform((x, value * y.scale))
        return found

    def box(low: np.ndarray, high: np.ndarray, pad: float) -> np.ndarray:
        return np.array([*np.minimum(low, high) - pad, *np.maximum(low, high) + pad])

    centre = pixels(point.x.value, point.y.value)
    boxes = [box(centre, centre, 5)]
    if point.x.low is not None and point.x.high is not None:
        boxes.append(box(pixels(point.x.low, point.y.value), pixels(point.x.high, point.y.value), 2))
    if point.y.low is not None and point.y.high is not None:
        boxes.append(box(pixels(point.x.value, point.y.low), pixels(point.x.value, point.y.high), 2))
    return boxes


def _line_boxes(axes: Any, best: Sequence[Point], y: Column) -> list[np.ndarray]:
    """Small boxes along the line of the frontier."""
    corners = axes.transData.transform([(p.x.value, p.y.value * y.scale) for p in best])
    dots = [a + (b - a) * t for a, b in itertools.pairwise(corners) for t in np.linspace(0, 1, 60)]
    return [np.array([*dot - 1.5, *dot + 1.5]) for dot in dots]


def png(figure: Any) -> bytes:
    """The figure as a PNG on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Any, label: str) -> str:
    """The figure as an <svg> element to stand in a page: no header, no outside names, the page's colours."""
    stream = io.StringIO()
    with require("matplotlib", "a plot").rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var({name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)
