"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fastdit.evaluation.extras import require
from fastdit.evaluation.fidelity import CAP
from fastdit.evaluation.report.columns import MACS, MACS_RATIO, VBENCH, Column
from fastdit.evaluation.report.strips import Strip
from fastdit.evaluation.report.table import Report, Row, same_n


@dataclass(frozen=True)
class Table:
    """One table of the page: its columns, and which of them begin a group."""

    columns: Sequence[Column]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns, with how many each spans."""
        return [(name, len(list(part))) for name, part in groupby(self.columns, lambda column: column.group)]

    def begins(self, column: Column) -> bool:
        """Whether a column is the first of its group."""
        place = self.columns.index(column)
        return place == 0 or self.columns[place - 1].group != column.group


def tables(columns: Sequence[Column]) -> list[Table]:
    """VBench's dimensions get a table of their own: sixteen more columns fit no page."""
    shown = [c for c in columns if c.key != MACS.key or MACS_RATIO not in columns]  # MACs stand below their ratio
    parts = ([c for c in shown if c.group != VBENCH], [c for c in shown if c.group == VBENCH])
    return [Table(part) for number, part in enumerate(parts) if part or number == 0]


def cell(row: Row, column: Column) -> tuple[str, str]:
    """What stands in a cell, and the small line below it: interval and another n, or the MACs below their ratio."""
    if column.key == MACS_RATIO.key:
        return row.text(column)[0], row.text(MACS)[0]
    value, interval = row.text(column)
    return value, ", ".join(filter(None, (interval, row.over(column))))


def render(report: Report, plots: Sequence[tuple[str, str]], strips: Sequence[Strip], rule: str) -> str:
    """The page; `plots` are (caption, <svg>). Everything else is escaped, prompts above all."""
    jinja2 = require("jinja2", "a report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    markup = require("markupsafe", "a report").Markup
    html: str = template.render(
        report=report,
        cell=cell,
        decibel=lambda psnr: "identical" if psnr >= CAP else f"{psnr:.1f} dB",
        pieces=re.compile(r"[^:,+]*[:,+]?\s*").findall,
        tables=tables(report.columns),
        plots=[(caption, markup(svg)) for caption, svg in plots],
        strips=strips,
        rule=rule,
        same_n=same_n(report.rows, report.columns),
        settings={name: _pretty(settings) for name, settings in report.settings.items()},
    )
    return html


def _pretty(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False)
