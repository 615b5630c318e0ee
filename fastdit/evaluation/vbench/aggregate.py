"""Quality, Semantic and Total score as VBench's leaderboard has them (`scripts/cal_final_score.py`).

VBench's script counts a dimension that is missing as 0; here a sum with a missing dimension does not exist.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.core.files import read_json
from fastdit.evaluation.intervals import DRAWS, Interval, draws_of
from fastdit.evaluation.vbench.dimensions import DIMENSIONS, QUALITY_WEIGHT, SEMANTIC_WEIGHT, group

SUMS = ("quality", "semantic", "total")


@dataclass(frozen=True)
class Row:
    """One video: its name, its prompt, and its scores by dimension."""

    name: str
    prompt: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """Aggregates by dimension as VBench gives them (0 to 1), and the videos' own scores, if they are known."""

    values: Mapping[str, float]
    rows: Sequence[Row] = ()
    warnings: Sequence[str] = ()
    partial: Mapping[str, str] = field(default_factory=dict)  # by dimension, how many of its videos are missing

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if name not in DIMENSIONS:
                raise ValueError(f"VBench has no dimension {name!r}")
            # appearance_style is a cosine, which may be below 0
            if not -1 <= value <= 1:
                raise ValueError(f"{name} is {value}: VBench's aggregates lie in 0 to 1 (give 0.63, not 63 %)")

    def normalised(self, name: str) -> float:
        """A dimension's score from its minimum..maximum to 0..1."""
        return DIMENSIONS[name].normalise(self.values[name])

    def missing(self, what: str = "total") -> list[str]:
        """The dimensions that a sum needs and that are not there."""
        return [name for name in _parts(what) if name not in self.values]

    def is_partial(self, what: str) -> bool:
        """Whether videos are missing for a dimension, or for one that a sum holds."""
        return any(name in self.partial for name in (_parts(what) if what in SUMS else (what,)))

    def sum(self, what: str) -> float:
        """quality, semantic or total; ValueError names the dimensions that are missing."""
        if absent := self.missing(what):
            needed = len(_parts(what))
            raise ValueError(
                f"{what} needs all {needed} of its dimensions, {len(absent)} are missing: {', '.join(absent)}"
            )
        return float(_sum(what, {name: np.float64(self.normalised(name)) for name in _parts(what)}))

    def interval(self, what: str) -> Interval:
        """The sum with its 95 % interval over prompts, where there are per-video scores of all its dimensions.

        Prompts are drawn within the sets that share their dimensions: every draw has all dimensions, and those that are
        measured on the same videos move together.
        """
        value, rows = self.sum(what), [row for row in self.rows if set(row.scores) & set(_parts(what))]
        drawn = self._draw(_parts(what), rows)
        if drawn is None:
            return Interval(value, None, None, len(rows))
        sums = _sum(what, {name: DIMENSIONS[name].normalise(means) for name, means in drawn.items()})
        low, high = np.quantile(sums, [0.025, 0.975])
        return Interval(value, float(low), float(high), len(rows))

    def _draw(self, names: Sequence[str], rows: Sequence[Row]) -> "dict[str, Any] | None":
        """Each dimension's score in each bootstrap draw (draws,); None if one has fewer than two prompts."""
        prompts = {name: {row.prompt for row in rows if name in row.scores} for name in names}
        if any(len(known) < 2 for known in prompts.values()):
            return None
        sets = [frozenset(name for name in names if row.prompt in prompts[name]) for row in rows]
        counts = np.zeros((DRAWS, len(rows)))
        for seed, one in enumerate(dict.fromkeys(sets)):
            members = [number for number, each in enumerate(sets) if each == one]
            counts[:, members] = draws_of([rows[number].prompt for number in members], seed=seed)
        drawn = {}
        for name in names:
            scores = np.array([row.scores.get(name, np.nan) for row in rows])
            there = ~np.isnan(scores)
            weight = counts[:, there].sum(1)
            if not weight.all():  # few prompts, and none with a score of this dimension in some draw
                return None
            means = counts[:, there] @ scores[there] / weight
            drawn[name] = means + (self.values[name] - scores[there].mean())  # VBench's value may be a mean over frames
        return drawn


def _parts(what: str) -> list[str]:
    if what not in SUMS:
        raise ValueError(f"unknown sum {what!r}; known: {', '.join(SUMS)}")
    return list(DIMENSIONS) if what == "total" else group(what)


def _sum(what: str, normalised: Mapping[str, Any]) -> Any:
    """The weighted mean of a group's normalised scores, or of the two groups; scalars or arrays of draws."""
    if what == "total":
        quality, semantic = (_sum(name, normalised) for name in ("quality", "semantic"))
        return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    weights = {name: DIMENSIONS[name].weight for name in group(what)}
    return sum(weight * normalised[name] for name, weight in weights.items()) / sum(weights.values())


def load(path: str | Path) -> Scores:
    """Scores of a run, of a vbench.json, or of VBench's own *_eval_results.json: a file, or a folder of them."""
    path = Path(path)
    if path.is_dir():
        for own in (path / "results" / "vbench.json", path / "vbench.json"):
            if own.is_file():
                return load(own)
        files = sorted(path.glob("*_eval_results.json"))
        if not files:
            raise ValueError(f"{path} holds no VBench results: `fastdit eval vbench score` writes them")
    else:
        files = [path]
    values: dict[str, float] = {}
    rows: list[Row] = []
    warnings: list[str] = []
    partial: dict[str, str] = {}
    for file in files:
        more = _from_file(file)
        if doubled := [name for name in more.values if name in values]:
            raise ValueError(f"{path} has {doubled[0]} twice, the second time in {file.name}: remove one of the files")
        values.update(more.values)
        rows.extend(more.rows)
        warnings.extend(more.warnings)
        partial.update(more.partial)
    return Scores(values, _joined(rows), warnings, partial)


def _from_file(path: Path) -> Scores:
    """One file, ours or VBench's; ValueError names it."""
    data = read_json(path)
    try:
        if data.get("metric") == "vbench":
            rows = [
                Row(row["name"], row["prompt"], {name: row[name] for name in DIMENSIONS if name in row})
                for row in data["samples"]
            ]
            values = {name: each["value"] for name, each in data["values"].items()}
            return Scores(values, rows, [str(text) for text in data.get("warnings", ())], dict(data.get("partial", {})))
        rows = []
        for name, (_, videos) in data.items():
            for video in videos:
                stem = Path(video["video_path"]).stem
                score = float(video["video_results"]) / DIMENSIONS[name].per_video
                rows.append(Row(stem, re.sub(r"-\d+$", "", stem), {name: score}))
        return Scores({name: float(value) for name, (value, _) in data.items()}, _joined(rows))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no VBench results that can be used: {error or type(error).__name__}") from error


def _joined(rows: Iterable[Row]) -> list[Row]:
    """One row a video, however its scores came."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.get(row.name)
        found[row.name] = Row(row.name, row.prompt, {**(known.scores if known else {}), **row.scores})
    return list(found.values())
