"""A report as data: rows of figures with their columns, what was measured how; as JSON (and back) and as Markdown."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.report.columns import SPEED, Column

VERSION = 1
DAGGER, PARTIAL = "\N{DAGGER}", "\N{DOUBLE DAGGER}"
WIDE = 8  # figures beside each other in a Markdown table; more of them do not fit on GitHub's page


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
    partial: list[str] = field(default_factory=list)  # keys of figures for which some of the samples were missing

    def text(self, column: Column) -> tuple[str, str]:
        """(value, interval) as printed in a column; a speed-up not timed in turns and a partial figure carry a mark."""
        value, interval = column.text(self.values.get(column.key))
        untimed = column.key == "speedup" and self.in_turns is False and column.key in self.values
        return value + (DAGGER if untimed else PARTIAL if column.key in self.partial else ""), interval

    def over(self, column: Column) -> str:
        """`n 5` for a figure that is over another number of samples than the row; "" elsewhere."""
        figure = self.values.get(column.key)
        if figure is None or figure.n == self.n or column.group == SPEED:  # the n of a speed counts batches
            return ""
        return f"n {figure.n}"


def same_n(rows: Sequence[Row], columns: Sequence[Column]) -> bool:
    """Whether all figures of quality are over the samples that the rows count."""
    return not any(row.over(column) for row in rows for column in columns)


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
    def n_text(self) -> str:
        """`n = 50`, which claims no more than is true of every figure."""
        return f"n = {self.n}" + ("" if same_n(self.rows, self.columns) else " where no other n is given")

    @property
    def footnotes(self) -> list[str]:
        """What the marks in the table mean, of those that it has."""
        untimed = any(row.in_turns is False for row in self.rows)
        partial = any(row.partial for row in self.rows)
        return [f"{DAGGER} {NOT_IN_TURNS}"] * untimed + [f"{PARTIAL} {NOT_WHOLE}"] * partial

    def to_markdown(self, plots: dict[str, str] | None = None) -> str:
        """Tables, plots (file name by caption), how it was measured, warnings and environment."""
        parts = [f"# {_plain(self.title)}", _facts(self.n_text, self.facts), *self.tables(), *self.footnotes]
        methods = {_plain(row.name): row.method for row in self.rows if row.method != row.name}
        parts.append("\n".join(f"- **{name}**: `{_line(method)}`" for name, method in methods.items()))
        parts += [f"![{_line(caption)}]({file})" for caption, file in (plots or {}).items()]
        parts += ["## How it was measured", "\n".join(f"- **{_plain(c.title)}**: {c.meaning}" for c in self.columns)]
        parts += [_line(note) for note in self.notes]
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {_line(text)}" for text in self.warnings)]
        parts += ["## Environment", "\n".join(f"- {key}: {_line(value)}" for key, value in self.environment.items())]
        if self.command:
            parts += ["## Made by", f"```sh\n{self.command}\n```"]
        parts.append(f"fastdit {self.fastdit}, {self.made}")
        return "\n\n".join(part for part in parts if part) + "\n"

    def tables(self) -> list[str]:
        """The figures as Markdown tables: groups stay together, and each table repeats the names of the runs."""
        parts: list[list[Column]] = [[]]
        for _, group in groupby(self.columns, lambda column: column.group):
            columns = list(group)
            if parts[-1] and len(parts[-1]) + len(columns) > WIDE:
                parts.append([])
            parts[-1] += columns[:WIDE]
            parts += [columns[start : start + WIDE] for start in range(WIDE, len(columns), WIDE)]
        return [self._table(part) for part in parts]

    def _table(self, columns: Sequence[Column]) -> str:
        heads = ["Run", *(f"{_plain(column.heading)} {column.arrow}".strip() for column in columns)]
        lines = [heads, ["---", *["---:"] * len(columns)]]
        lines += [[_plain(row.name), *(_figure(row, column) for column in columns)] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOT_IN_TURNS = "not timed in turns with the dense run: other work on the machine may be part of this ratio."
NOT_WHOLE = (
    "videos that VBench wants are missing or damaged (see the warnings): not to be set beside published figures."
)


def _figure(row: Row, column: Column) -> str:
    """`28.1 (27.0 to 29.2), n 5`, as far as there are an interval and another n."""
    value, interval = row.text(column)
    return ", ".join(filter(None, (f"{value} ({interval})" if interval else value, row.over(column))))


def _line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to set: names come from folders and files. a_b is left as it is."""
    return re.sub(r"[\\|*`<>\[\]~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _line(text))


def _facts(n: str, facts: dict[str, str]) -> str:
    return " \N{MIDDLE DOT} ".join([n, *(f"{key} {_line(value)}" for key, value in facts.items())])
