"""The manifest of a run: one line a sample, written when the sample is on the disk, merged by readers."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json, write_json

VERSION = 1


@dataclass(frozen=True)
class Item:
    """A sample to make: its number, prompt (or class label), seed; `name` overrides the file stem of a video."""

    index: int
    prompt: str
    seed: int
    name: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class Record:
    """A sample that was made: files relative to the run's folder, `file` the lossless one; seconds of its share."""

    index: int
    file: str
    prompt: str
    seed: int
    settings: str
    seconds: float
    macs_dense: int
    macs_executed: int
    batch: int
    session: str = ""  # one call of `generate`: runs of one session took turns, so their seconds may be compared
    cold: bool = False  # of the first batch of its session: its seconds hold warming up
    rank: int = 0
    label: int | None = None
    video: str | None = None


_NAMES = {field.name for field in fields(Record)}


def hash_of(settings: dict[str, Any]) -> str:
    """Twelve hex digits of what decides the pixels; equal settings give equal hashes in any order of keys."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def manifests(folder: Path) -> list[Path]:
    """The manifest files of all ranks, by rank."""
    return sorted(folder.glob("manifest.*.jsonl"), key=lambda path: (len(path.name), path.name))


def read_lines(path: Path) -> Iterator[Record]:
    """Records of one manifest; a torn last line is left out, a broken line before it is an error that names it."""
    *lines, _torn = path.read_bytes().split(b"\n")  # the last piece has no line end: empty, or torn by a kill
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            yield Record(**{name: value for name, value in data.items() if name in _NAMES})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no record of a sample ({error}): remove that line") from error


def read_manifest(folder: Path) -> list[Record]:
    """All ranks' records by index; of two lines for one index the last of the highest rank counts.

    ValueError if two lines of one index disagree in prompt or seed, or if the lines have different settings.
    """
    found: dict[int, Record] = {}
    for path in manifests(folder):
        for record in read_lines(path):
            other = found.setdefault(record.index, record)
            if (other.prompt, other.seed) != (record.prompt, record.seed):
                raise ValueError(f"{folder}: index {record.index} stands for two samples, {other.prompt!r} with seed "
                                 f"{other.seed} and {record.prompt!r} with seed {record.seed}")  # fmt: skip
            found[record.index] = record
    if len(hashes := {record.settings for record in found.values()}) > 1:
        raise ValueError(f"{folder} mixes samples of {len(hashes)} settings ({', '.join(sorted(hashes))})")
    return [found[index] for index in sorted(found)]


def have_files(folder: Path, records: Iterable[Record]) -> list[Record]:
    """The records whose files are all there and not empty; folders are listed once, not asked file by file."""
    listed: dict[Path, set[str]] = {}

    def there(file: str) -> bool:
        path = folder / file
        if path.parent not in listed:
            entries = os.scandir(path.parent) if path.parent.is_dir() else ()
            listed[path.parent] = {entry.name for entry in entries if entry.stat().st_size}
        return path.name in listed[path.parent]

    return [record for record in records if there(record.file) and (record.video is None or there(record.video))]


class Writer:
    """Appends records to one rank's manifest: one write and one fsync a line; only one process may hold it."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"manifest.{rank}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._drop_torn_line()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: no such lock, the rule holds by discipline
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{self.path} is being written by another process: wait for it, or stop it") from error
        except OSError:  # a file system without locks
            return

    def _drop_torn_line(self) -> None:
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.ftruncate(self._file, data.rfind(b"\n") + 1)

    def append(self, record: Record) -> None:
        line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.path}: the disk took only a part of a line; free some space and run again")
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def open_run(
    folder: Path, name: str, settings: dict[str, Any], environment: dict[str, Any], indices: Iterable[int] = ()
) -> str:
    """Make a run's folder, or take up the one that is there; returns the settings' hash.

    `indices` are those of the wanted items: settings.json says how many the run is to hold. ValueError if the folder
    holds samples of other settings: it names the first that differs. Another environment is a warning.
    """
    path, digest = folder / "settings.json", hash_of(settings)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    head = {"version": VERSION, "name": name, "hash": digest}
    if not path.exists():
        write_json(path, {**head, "items": len(set(indices)), "settings": settings, "environment": environment})
        return digest
    known = read_settings(folder)
    if known["hash"] != digest:
        before, now = flat(known["settings"]), flat(settings)
        key = next((key for key in {**before, **now} if before.get(key) != now.get(key)), "hash")
        raise ValueError(f"{folder} holds samples of other settings: {key} is {before.get(key)!r} there and "
                         f"{now.get(key)!r} now; give another --out, or remove that folder")  # fmt: skip
    here = known.get("environment", {})
    if differ := [f"{k}: {here[k]}, now {environment[k]}" for k in here if environment.get(k, here[k]) != here[k]]:
        warnings.warn(f"{folder} was begun elsewhere or with other versions ({'; '.join(differ)})", stacklevel=2)
    items = len({record.index for record in read_manifest(folder)}.union(indices))
    if items != known.get("items"):
        write_json(path, {**known, "items": items})
    return digest


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by their path: {"call": {"steps": 4}} -> {"call.steps": 4}."""
    if not isinstance(data, (dict, list)) or not data:
        return {path: data}
    entries = data.items() if isinstance(data, dict) else enumerate(data)
    parts = [flat(value, f"{path}.{key}" if path else str(key)) for key, value in entries]
    return {key: value for part in parts for key, value in part.items()}


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json of a run; ValueError if it is not one, or of a later version."""
    data = read_json(folder / "settings.json")
    if not isinstance(data, dict) or not {"version", "name", "hash", "settings"} <= set(data):
        raise ValueError(f"{folder / 'settings.json'} is not of a run of `fastdit eval generate`")
    if data["version"] != VERSION:
        raise ValueError(f"{folder} was written by another version ({data['version']}, this one reads {VERSION})")
    return data
