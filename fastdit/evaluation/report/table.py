"""A report as data: rows of figures with their columns, what was measured how; as JSON (and back) and as Markdown."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.report.columns import Column

VERSION = 1
DAGGER = "\N{DAGGER}"


@dataclass(frozen=True)
class Row:
    """What is known of one run; a figure that is not known is absent from `values`."""

    name: str
    method: str
    settings: str  # hash of settings.json
    dense: bool
    n: int
    values: dict[str, Interval]
    in_turns: bool | None = None  # whether its speed-up was timed in turns with the dense run

    def text(self, column: Column) -> tuple[str, str]:
        """(value, interval) as printed in a column; a speed-up that was not timed in turns carries a dagger."""
        value, interval = column.text(self.values.get(column.key))
        marked = column.key == "speedup" and self.in_turns is False and column.key in self.values
        return value + (DAGGER if marked else ""), interval


@dataclass(frozen=True)
class Report:
    """Everything that stands on the page but plots and pictures."""

    title: str
    columns: list[Column]
    rows: list[Row]
    n: int
    warnings: list[str]
    notes: list[str]  # how it was measured, a paragraph each
    environment: dict[str, str]
    settings: dict[str, dict[str, Any]]  # by run
    made: str  # date
    fastdit: str
    command: str | None = None
    facts: dict[str, str] = field(default_factory=dict)  # what is the same for all runs

    def to_json(self) -> str:
        """JSON with all digits; the printed ones are `text` of a Row."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report of report.json; ValueError if it is of a later version."""
        data = json.loads(text)
        if (version := data.pop("version", None)) != VERSION:
            raise ValueError(f"this report was written by another version ({version}, this one reads {VERSION})")
        rows = [
            Row(**{**row, "values": {key: Interval(**value) for key, value in row["values"].items()}})
            for row in data["rows"]
        ]
        return Report(**{**data, "columns": [Column(**column) for column in data["columns"]], "rows": rows})

    def has(self, key: str) -> bool:
        """Whether the table has this column."""
        return any(column.key == key for column in self.columns)

    @property
    def untimed(self) -> bool:
        """Whether a speed-up carries a dagger."""
        return any(row.in_turns is False for row in self.rows)

    def to_markdown(self, plots: dict[str, str] | None = None) -> str:
        """Table, plots (file name by caption), how it was measured, warnings and environment."""
        parts = [f"# {_line(self.title)}", _facts(self.facts), self.table()]
        if self.untimed:
            parts.append(f"{DAGGER} {NOT_IN_TURNS}")
        parts += [f"![{_line(caption)}]({file})" for caption, file in (plots or {}).items()]
        parts += ["## How it was measured", "\n".join(f"- **{c.title}**: {c.meaning}" for c in self.columns)]
        parts += [_line(note) for note in self.notes]
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {_line(text)}" for text in self.warnings)]
        parts += ["## Environment", "\n".join(f"- {key}: {_line(value)}" for key, value in self.environment.items())]
        if self.command:
            parts += ["## Made by", f"```sh\n{self.command}\n```"]
        parts.append(f"fastdit {self.fastdit}, {self.made}")
        return "\n\n".join(part for part in parts if part) + "\n"

    def table(self) -> str:
        """The table alone, as Markdown."""
        heads = ["Run", "Method", "n", *(f"{column.heading} {column.arrow}".strip() for column in self.columns)]
        lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
        for row in self.rows:
            cells = [row.text(column) for column in self.columns]
            figures = [f"{value} ({interval})" if interval else value for value, interval in cells]
            lines.append([_cell(row.name), f"`{_cell(row.method)}`", str(row.n), *figures])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOT_IN_TURNS = "not timed in turns with the dense run: other work on the machine may be part of this ratio."


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _facts(facts: dict[str, str]) -> str:
    return " \N{MIDDLE DOT} ".join(f"{key} {_line(value)}" for key, value in facts.items())
