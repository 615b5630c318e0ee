"""Scoring: each dimension by the real vbench or natively, kept once it is there; one that fails loses no other."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdit.evaluation import frames
from fastdit.evaluation.vbench.dimensions import DIMENSIONS, FLICKERING, SAMPLES
from fastdit.evaluation.vbench.flickering import UNFILTERED, temporal_flickering
from fastdit.evaluation.vbench.results import NATIVE, Outcome, Sample, Scored, keep, kept, scored, write
from fastdit.evaluation.vbench.runner import Engine, Failed
from fastdit.evaluation.vbench.suite import PromptSuite
from fastdit.evaluation.vbench.videos import Folder, Video, fingerprint, show

NEEDS_VBENCH = "needs vbench, name its interpreter with --python (docs/vbench.md)"


@dataclass(frozen=True)
class Scoring:
    """What to score, and with what; `static`: the videos of temporal flickering that VBench's static filter kept."""

    run: Path
    suite: PromptSuite
    out: Path
    engine: Engine | None = None
    static: Path | None = None
    device: str = "auto"
    timeout: float | None = None
    again: bool = False
    tell: Callable[[str], None] = lambda text: None

    def score(self, dimensions: Sequence[str]) -> Outcome:
        """Score the dimensions and write OUT/vbench.json, also after Ctrl-C; ValueError for bad input."""
        self.suite.of(dimensions)
        folders = self._folders()
        try:
            (self.out / "vbench").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"results cannot be written into {self.out} ({error.strerror}): give --out") from error
        outcome = Outcome()
        try:
            for number, dimension in enumerate(dimensions, 1):
                self.tell(f"{dimension} ({number} of {len(dimensions)})")
                videos, missing = folders[dimension].of(self.suite, dimension)
                self._one(dimension, videos, missing, outcome)
        finally:
            self._add_kept(folders, dimensions, outcome)
            self._count_missing(folders, outcome)
            write(outcome, self.out, self.run)
        return outcome

    def _folders(self) -> dict[str, Folder]:
        videos = Folder.open(self.run)
        static = Folder.open(self.static) if self.static else videos
        return {name: static if name == FLICKERING else videos for name in DIMENSIONS}

    def _one(self, dimension: str, videos: list[Video], missing: list[str], outcome: Outcome) -> None:
        """Put the dimension's score, or why there is none, into the outcome."""
        if not videos:
            outcome.failed[dimension] = f"none of its {len(missing)} videos is there, the first is {missing[0]!r}"
            return
        mark = fingerprint(videos)
        known = kept(self.out, dimension)
        other = self.engine is not None and known is not None and known.engine != self.engine.name
        if known and self._holds(known, mark) and not other and not self.again:
            outcome.scores[dimension] = known
            return
        if self.engine is None and dimension != FLICKERING:
            outcome.skipped[dimension] = NEEDS_VBENCH
            return
        start = time.perf_counter()
        try:
            value, samples, notes = self._by_vbench(dimension, videos) if self.engine else _natively(videos)
        except Failed as error:
            outcome.failed[dimension] = str(error)
            return
        if dimension == FLICKERING and not self.static:
            notes.append(UNFILTERED)
        done = scored(
            dimension, value, samples, notes, engine=self.engine.name if self.engine else NATIVE, fingerprint=mark,
            wanted=len(videos) + len(missing), seconds=round(time.perf_counter() - start, 3),
            filtered=dimension == FLICKERING and self.static is not None,
        )  # fmt: skip
        keep(self.out, done)
        outcome.scores[dimension] = done

    def _holds(self, known: Scored, mark: str) -> bool:
        """Whether a kept score is of the videos as they are now."""
        filtered = known.dimension == FLICKERING and self.static is not None
        return known.fingerprint == mark and known.filtered == filtered

    def _by_vbench(self, dimension: str, videos: list[Video]) -> tuple[float, list[Sample], list[str]]:
        assert self.engine is not None
        with tempfile.TemporaryDirectory(prefix="fastdit-vbench-") as temporary:
            shown = Path(temporary) / "videos"
            hidden = show(videos, shown)
            if len(hidden) == len(videos):
                raise Failed("vbench can find none of its videos: their prompts cannot name a file")
            out = (self.out / "vbench").resolve()
            value, listed = self.engine.score(dimension, self.suite.path, shown, out, self.device, self.timeout)
        by_name = {video.exact: video for video in videos}
        scale = DIMENSIONS[dimension].per_video
        samples = []
        for each in listed:
            video = by_name.get(Path(each["video_path"]).name)
            if video is None:
                raise Failed(f"vbench scored {Path(each['video_path']).name}, which is none of the videos")
            samples.append(Sample(video.path.stem, video.prompt, float(each["video_results"]) / scale))
        notes = []
        if hidden:
            notes.append(f"{len(hidden)} videos were left out: their prompts cannot name a file, so vbench finds none")
        if len(listed) < len(videos) - len(hidden):
            notes.append(f"vbench judged {len(listed)} of {len(videos) - len(hidden)} videos and left the rest out")
        return value, samples, notes

    def _add_kept(self, folders: dict[str, Folder], dimensions: Sequence[str], outcome: Outcome) -> None:
        """Scores of earlier calls that still hold; one of other videos than are there now only gives a warning."""
        for name in self.suite.dimensions:
            known = None if name in outcome.scores else kept(self.out, name)
            if known is None:
                continue
            if self._holds(known, fingerprint(folders[name].of(self.suite, name)[0])):
                outcome.scores[name] = known
            elif name not in dimensions:
                outcome.warnings.append(f"{name} was scored on other videos than are there now: score it again")

    def _count_missing(self, folders: dict[str, Folder], outcome: Outcome) -> None:
        """Enter the scores that lack videos; one that vbench left out by its own rules (color) is not missing."""
        for name, score in outcome.scores.items():
            found, missing = folders[name].of(self.suite, name)
            damaged = len(found) - score.n if score.engine == NATIVE else 0
            if missing or damaged:
                outcome.partial[name] = f"{len(missing) + damaged} of {len(found) + len(missing)}"
        if outcome.partial:
            listed = ", ".join(f"{name} {count}" for name, count in outcome.partial.items())
            outcome.warnings.insert(0, f"missing or damaged videos ({SAMPLES} a prompt are wanted): {listed}")


def _natively(videos: list[Video]) -> tuple[float, list[Sample], list[str]]:
    """Temporal flickering on the decoded frames; a damaged video is left out, as VBench does, but counted."""
    samples: list[Sample] = []
    broken: list[str] = []
    for video in videos:
        try:
            samples.append(Sample(video.path.stem, video.prompt, temporal_flickering(frames.read(video.path))))
        except ValueError as error:
            broken.append(str(error))
    if not samples:
        raise Failed(f"no video can be scored, the first: {broken[0]}")
    notes = [f"{len(broken)} of {len(videos)} videos were left out, the first: {broken[0]}"] if broken else []
    return sum(sample.score for sample in samples) / len(samples), samples, notes
