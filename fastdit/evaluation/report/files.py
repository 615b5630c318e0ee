"""Writing a report: report.html, report.md, report.json, and the plots as PNG beside them."""

from collections.abc import Sequence
from pathlib import Path

from fastdit.core.files import write_whole
from fastdit.evaluation.extras import require
from fastdit.evaluation.report import plots
from fastdit.evaluation.report.columns import MACS_RATIO, SPEEDUP, Column
from fastdit.evaluation.report.page import render
from fastdit.evaluation.report.rows import Gathered
from fastdit.evaluation.report.strips import RULE, RULE_WITHOUT_DENSE, strips
from fastdit.evaluation.report.table import DAGGER, PARTIAL, Report, Row

PLOTTED = ("psnr", "kid", "fd", "vbench.total")


def write_report(gathered: Gathered, out: Path, strip_count: int = 6) -> list[Path]:
    """Write all files of a report into the folder `out`; plots of an earlier report there are replaced or removed."""
    for module in ("jinja2", "matplotlib"):
        require(module, "a report")
    found, warnings = strips(gathered.runs, gathered.psnr, strip_count)
    report = gathered.report
    report.warnings.extend(warnings)
    drawn = figures(report)
    out.mkdir(parents=True, exist_ok=True)
    for key in PLOTTED:
        if key not in drawn:
            (out / file_of(key)).unlink(missing_ok=True)
    rule = RULE if gathered.psnr else RULE_WITHOUT_DENSE
    html = render(report, [(caption, plots.svg(figure, caption)) for caption, figure in drawn.values()], found, rule)
    texts = {
        "report.html": html,
        "report.md": report.to_markdown({caption: file_of(key) for key, (caption, _) in drawn.items()}),
        "report.json": report.to_json(),
    }
    written = []
    for key, (_, figure) in drawn.items():
        written.append(_write(out / file_of(key), plots.png(figure)))
    return [*written, *(_write(out / name, text.encode()) for name, text in texts.items())]


def file_of(key: str) -> str:
    """Name of a plot's file."""
    return f"speed_{key.replace('.', '_')}.png"


def figures(report: Report) -> dict[str, tuple[str, plots.Figure]]:
    """Caption and figure of every quality that at least two runs have beside a speed-up, or beside MACs without one."""
    known = {column.key: column for column in report.columns}
    x = SPEEDUP if any("speedup" in row.values for row in report.rows if not row.dense) else MACS_RATIO
    drawn = {}
    for key in PLOTTED:
        if key not in known or (key == "fd" and "kid" in known):
            continue
        points = _points(report, x, known[key])
        if len(points) >= 2:
            drawn[key] = (_caption(x, known[key]), plots.draw(points, x, known[key], _note(points)))
    return drawn


def _points(report: Report, x: Column, y: Column) -> list[plots.Point]:
    return [
        plots.Point(_marked(row, y), row.values[x.key], row.values[y.key], row.dense)
        for row in report.rows
        if x.key in row.values and y.key in row.values
    ]


def _marked(row: Row, y: Column) -> str:
    """A run's name with the marks that its figures carry in the table."""
    return row.name + (DAGGER if row.in_turns is False else "") + (PARTIAL if y.key in row.partial else "")


def _note(points: Sequence[plots.Point]) -> str:
    """The n of what is drawn, which need not be the report's."""
    counts = sorted({point.y.n for point in points})
    return f"n = {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''}, 95 % intervals"


def _caption(x: Column, y: Column) -> str:
    return (
        f"{x.title} against {y.title}, with 95 % intervals in both directions. Filled points are on the frontier: no "
        "other run is both faster and better."
    )


def _write(path: Path, data: bytes) -> Path:
    return write_whole(path, lambda temporary: temporary.write_bytes(data))
