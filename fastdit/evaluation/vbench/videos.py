"""Videos on disk as VBench wants them: found by name in a run or a folder, and shown to it in a folder of their own."""

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdit.evaluation.vbench.dimensions import SAMPLES
from fastdit.evaluation.vbench.names import Names, exact, unsafe
from fastdit.evaluation.vbench.suite import Prompt, PromptSuite

SUFFIXES = (".mp4", ".gif")  # what VBench takes


@dataclass(frozen=True)
class Video:
    """One of the five videos of a prompt that VBench looks at."""

    path: Path
    prompt: str
    index: int

    @property
    def exact(self) -> str | None:
        """The name under which VBench finds it; None if no file can have it."""
        return None if unsafe(self.prompt) else exact(self.prompt, self.index, self.path.suffix.lower())


@dataclass(frozen=True)
class Folder:
    """Videos by stem, all of one file type: VBench takes the type of the first file for all."""

    path: Path
    files: dict[str, Path]

    @staticmethod
    def open(path: str | Path) -> "Folder":
        """The videos of a run (RUN/videos) or of a flat folder; ValueError if there are none."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"--videos {path} is no folder: give a run of `eval vbench generate`, or its videos")
        for folder in (path / "videos", path):
            listed = sorted(folder.iterdir()) if folder.is_dir() else []
            files = [file for file in listed if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
            for suffix in SUFFIXES:
                if found := {_composed(file.stem): file for file in files if file.suffix.lower() == suffix}:
                    return Folder(folder, found)
        raise ValueError(f"{path} holds no videos ({' '.join(SUFFIXES)}): `fastdit eval vbench generate` makes them")

    def of(self, suite: PromptSuite, dimension: str) -> tuple[list[Video], list[str]]:
        """The dimension's videos that are there, and the names of those that are not."""
        prompts = suite.of([dimension])
        plain, folded = (Names((prompt.prompt for prompt in suite.prompts), folds) for folds in (False, True))
        found: list[Video] = []
        missing: list[str] = []
        for prompt, index in ((prompt, index) for prompt in prompts for index in range(SAMPLES)):
            path = self._path(prompt, index, plain, folded)
            if path is None:
                missing.append(plain.stem(prompt.prompt, index))
            else:
                found.append(Video(path, prompt.prompt, index))
        return found, missing

    def _path(self, prompt: Prompt, index: int, *names: Names) -> Path | None:
        """By the prompt's own name, or the safe one of `generate` (another on a file system that folds case)."""
        stems = (f"{prompt.prompt}-{index}", *(each.stem(prompt.prompt, index) for each in names))
        return next((self.files[stem] for stem in map(_composed, stems) if stem in self.files), None)


def fingerprint(videos: Iterable[Video]) -> str:
    """Equal as long as the same files are there (names, sizes, times); hashing gigabytes would take minutes."""
    digest = hashlib.sha256()
    for video in videos:
        state = video.path.stat()
        line = f"{video.prompt}\0{video.index}\0{state.st_size}\0{state.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def show(videos: Sequence[Video], folder: Path) -> list[Video]:
    """Put the videos that VBench can find into an empty folder under their exact names; returns those it cannot.

    A folder of its own, as VBench takes the file type of whatever is listed first, raw frames included.
    """
    folder.mkdir()
    hidden = []
    for video in videos:
        target = folder / (video.exact or "")
        if video.exact is None or target.exists():  # the second of two names that this file system takes for one
            hidden.append(video)
        else:
            _link(video.path.resolve(), target)
    return hidden


def _link(source: Path, target: Path) -> None:
    for way in (os.symlink, os.link, shutil.copyfile):  # Windows allows symbolic links to few, hard ones on one disk
        try:
            way(source, target)
            return
        except OSError as error:
            last = error
    raise last


def _composed(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)  # some file systems give names back decomposed
