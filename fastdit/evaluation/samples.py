"""A set of samples to measure: a run's folder, a bare folder of pictures or videos, one file, or an ADM npz."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.core.files import write_json
from fastdit.evaluation import frames
from fastdit.evaluation.manifest import Record, have_files, manifests, read_manifest, read_settings


@dataclass(frozen=True)
class Samples:
    """Names in order, how to read each as uint8 (T, H, W, 3), and `records` by name where there is a manifest."""

    root: Path
    names: Sequence[str]
    read: Callable[[str], np.ndarray]
    records: dict[str, Record] = field(default_factory=dict)
    settings: dict[str, Any] | None = None  # settings.json of a run
    paths: dict[str, Path] = field(default_factory=dict)  # the file of each name, where each has one
    warnings: list[str] = field(default_factory=list)  # what every figure of these samples must say

    @property
    def is_run(self) -> bool:
        return self.settings is not None

    @staticmethod
    def open(path: str | Path) -> "Samples":
        """Open whatever `path` is; ValueError if it is absent, empty, or holds two samples of one name."""
        path = Path(path)
        if path.is_dir():
            if path.name == "samples" and (path.parent / "settings.json").is_file():
                path = path.parent  # the files of a run: its manifest says what they are
            return _open_run(path) if (path / "settings.json").is_file() else _open_folder(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: give a folder, a picture, a video or an npz of samples")
        if path.suffix.lower() == ".npz":
            from fastdit.evaluation.adm import open_pack

            return open_pack(path)
        frames.check_kind(path)
        return _of_files(path.parent, {path.name: path})


@dataclass(frozen=True)
class _Reader:
    """Reads by name; an object, so that worker processes can be given it on every system."""

    paths: dict[str, Path]

    def __call__(self, name: str) -> np.ndarray:
        return frames.read(self.paths[name])


def _of_files(root: Path, paths: dict[str, Path], **more: Any) -> Samples:
    return Samples(root, list(paths), _Reader(paths), paths=paths, **more)


def _open_run(folder: Path) -> Samples:
    records = {record.file: record for record in have_files(folder, read_manifest(folder))}
    if not records:
        raise ValueError(f"{folder} holds no finished samples yet: `fastdit eval generate` writes them")
    paths, settings = {name: folder / name for name in records}, read_settings(folder)
    wanted = settings.get("items", len(records))
    missing = wanted - len(records)
    warnings = [f"{folder}: {missing} of {wanted} samples are missing: run the same `fastdit eval generate` again"]
    return _of_files(folder, paths, records=records, settings=settings, warnings=warnings if missing > 0 else [])


def _open_folder(folder: Path) -> Samples:
    """Every picture, npy or video below the folder; a video's npy of the same name stands for it, being lossless."""
    if runs := sorted(path.parent.name for path in folder.rglob("settings.json") if manifests(path.parent)):
        raise ValueError(f"{folder} holds {len(runs)} runs ({', '.join(runs)}): give one of them")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in frames.KINDS or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        other = files.setdefault(stem, path)
        if other == path:
            continue
        raw, more = sorted((other, path), key=lambda p: p.suffix.lower() != ".npy")
        if raw.suffix.lower() != ".npy" or more.suffix.lower() not in frames.VIDEOS:
            raise ValueError(f"{folder}: {other.name} and {path.name} are two samples of one name, remove one")
        files[stem] = raw
    if not files:
        raise ValueError(f"{folder} holds no samples: none of {' '.join(sorted(frames.KINDS))} is in it")
    return _of_files(folder, files)


def pairs(a: Samples, b: Samples) -> list[tuple[str, str]]:
    """Names that belong together: by index in two runs, by name in folders, as they are for one file each.

    ValueError if a run's prompts or seeds differ, or if one set has samples that the other lacks.
    """
    if len(a.names) == len(b.names) == 1 and not (a.is_run and b.is_run):
        return [(a.names[0], b.names[0])]
    if not (a.is_run and b.is_run):
        return _by_key(a, b, {name: name for name in a.names}, {name: name for name in b.names})
    found = _by_key(a, b, *({str(r.index): name for name, r in s.records.items()} for s in (a, b)))
    for one, two in found:
        first, second = a.records[one], b.records[two]
        if (first.prompt, first.seed) != (second.prompt, second.seed):
            raise ValueError(
                f"sample {first.index} is {first.prompt!r} with seed {first.seed} in {a.root} and {second.prompt!r} "
                f"with seed {second.seed} in {b.root}: generate both from one list of prompts"
            )
    return found


def _by_key(a: Samples, b: Samples, first: dict[str, str], second: dict[str, str]) -> list[tuple[str, str]]:
    for one, two, here, there in ((first, second, a, b), (second, first, b, a)):
        if missing := [key for key in one if key not in two]:
            raise ValueError(
                f"{len(missing)} of {len(one)} samples of {here.root} are not in {there.root}, the first is "
                f"{missing[0]!r}: generate the missing ones, or compare folders of the same samples"
            )
    return [(name, second[key]) for key, name in first.items()]


def keep_result(samples: Samples, name: str, data: dict[str, Any]) -> Path | None:
    """Write a metric's result into results/<name>.json of a run, where `fastdit eval report` finds it; else None."""
    if not samples.settings:
        return None
    (samples.root / "results").mkdir(exist_ok=True)
    head = {"settings": samples.settings["hash"], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    return write_json(samples.root / "results" / f"{name}.json", {**head, **data})
