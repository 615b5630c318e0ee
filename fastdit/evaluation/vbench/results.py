"""Scores of one run: a file a dimension, written when it is done, and results/vbench.json, which merges them."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json, write_json
from fastdit.evaluation.intervals import Interval, bootstrap
from fastdit.evaluation.vbench.dimensions import DIMENSIONS

NATIVE = "fastdit"


@dataclass(frozen=True)
class Sample:
    """What one video got: `score` as it enters the mean."""

    name: str
    prompt: str
    score: float


@dataclass(frozen=True)
class Scored:
    """A dimension's score: `value` is VBench's own aggregate, the interval is over prompts."""

    dimension: str
    engine: str  # "vbench 0.1.5", or "fastdit" for the native one
    value: float
    low: float | None
    high: float | None
    wanted: int  # videos that VBench looks for
    fingerprint: str
    seconds: float
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    filtered: bool = False

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high, self.n)


def scored(dimension: str, value: float, samples: Iterable[Sample], notes: Iterable[str] = (), **more: Any) -> Scored:
    """A Scored with its 95 % interval over prompts.

    Some dimensions are averaged over frames (or by objects found), so that the mean over videos is another number where
    lengths differ: the interval of the mean over videos is then moved to VBench's value, and a note says so.
    """
    samples, notes = tuple(samples), list(notes)
    over_videos = bootstrap([sample.score for sample in samples], groups=[sample.prompt for sample in samples])
    shift = value - over_videos.value
    if abs(shift) > 1e-6:
        notes.append(f"the mean over videos is {over_videos.value:.6f}; the interval is moved to vbench's value")
    ends = [None if end is None else end + shift for end in (over_videos.low, over_videos.high)]
    return Scored(dimension, value=value, low=ends[0], high=ends[1], samples=samples, notes=tuple(notes), **more)


def state_file(out: Path, dimension: str) -> Path:
    """Where a dimension's score is kept; one file each, so that several processes may score into one folder."""
    return out / "vbench" / f"{dimension}.json"


def keep(out: Path, score: Scored) -> None:
    """Write a dimension's score, whole."""
    write_json(state_file(out, score.dimension), asdict(score))


def kept(out: Path, dimension: str) -> Scored | None:
    """The score that is kept for a dimension; None if there is none, or not one of this version."""
    if not state_file(out, dimension).is_file():
        return None
    try:
        data = read_json(state_file(out, dimension))
        samples = tuple(Sample(**sample) for sample in data.pop("samples"))
        known = {name: data[name] for name in (each.name for each in fields(Scored)) if name in data}
        return Scored(**{**known, "samples": samples, "notes": tuple(known["notes"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass
class Outcome:
    """What a call of `score` came to: scores that hold for the videos as they are, and why the rest has none."""

    scores: dict[str, Scored] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)  # of what is scored, how many videos are missing or damaged

    @property
    def complete(self) -> bool:
        """Whether every dimension that was asked for has been scored."""
        return not self.skipped and not self.failed

    def ordered(self) -> dict[str, Scored]:
        """The scores in VBench's order."""
        return {name: self.scores[name] for name in DIMENSIONS if name in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """The result as `fastdit eval report` reads it."""
        scores = self.ordered()
        rows: dict[str, dict[str, Any]] = {}
        for name, score in scores.items():
            for sample in score.samples:
                row = rows.setdefault(sample.name, {"name": sample.name, "prompt": sample.prompt})
                row[name] = sample.score
        notes = [f"{name}: {note}" for name, score in scores.items() for note in score.notes]
        engines = sorted({score.engine for score in scores.values()})
        return {
            "metric": "vbench",
            "against": None,
            "vbench": next((engine.removeprefix("vbench ") for engine in engines if engine != NATIVE), None),
            "n": len(rows),
            "values": {name: score.interval.to_dict() for name, score in scores.items()},
            "engines": {name: score.engine for name, score in scores.items()},
            "seconds": {name: score.seconds for name, score in scores.items()},
            "skipped": self.skipped,
            "failed": self.failed,
            "partial": self.partial,
            "warnings": [*self.warnings, *notes],
            "samples": list(rows.values()),
        }


def write(outcome: Outcome, out: Path, run: Path) -> Path:
    """Write OUT/vbench.json; `run` is where settings.json would be."""
    settings = run / "settings.json"
    head = {
        "settings": read_json(settings).get("hash") if settings.is_file() else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return write_json(out / "vbench.json", {**head, **outcome.to_dict()})
