"""Where samples come from: an npz, or a folder of pictures or videos; what they show is told by captions or labels."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdit.training.pictures import PICTURES, VIDEOS, read_picture, read_video

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Source:
    """Samples by number: `names`, what each shows (None where nothing is told), and `read(number, frames)`.

    `read` gives uint8 (H, W, 3), of a video (F, H, W, 3) with at most `frames` frames, or a ValueError; `forget` drops
    what it keeps in memory. `stats` change when the files do. `shape` is that of every sample where it is known before
    reading.
    """

    path: Path
    names: list[str]
    stats: Any
    captions: list[str | None]
    labels: list[int | None]
    read: Callable[[int, int | None], np.ndarray]
    shape: tuple[int, ...] | None = None
    forget: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.names)

    def told(self, what: str) -> list[Any]:
        """The "captions" or the "labels"; ValueError counts the samples without one."""
        found: list[Any] = getattr(self, what)
        without = [name for name, value in zip(self.names, found, strict=True) if value is None]
        if without:
            raise ValueError(
                f"--data: {len(without)} of {len(self)} samples in {self.path} have no {what[:-1]}{first_of(without)}; "
                + _MENDS[what]
            )
        return found

    def take(self, numbers: Sequence[int]) -> "Source":
        """Some of the samples, in this order."""
        numbers = list(numbers)
        return replace(
            self,
            names=[self.names[n] for n in numbers],
            captions=[self.captions[n] for n in numbers],
            labels=[self.labels[n] for n in numbers],
            read=lambda number, frames: self.read(numbers[number], frames),
        )


_MENDS = {
    "captions": f'give {METADATA} with lines {{"file_name": ..., "text": ...}}, a .txt beside each file, folders named '
    "by what their files show, or an npz with c",
    "labels": f'give one folder for each class, {METADATA} with lines {{"file_name": ..., "label": ...}}, or an npz '
    "with y",
}


def first_of(names: Sequence[str]) -> str:
    """The first three names, in brackets."""
    return f" ({', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''})"


def open_source(path: Path, video: bool) -> Source:
    """The samples of a path, pictures or videos; ValueError if it holds none."""
    path = Path(path)
    if path.is_dir():
        return folder_source(path, video)
    if not path.is_file():
        raise ValueError(f"--data: {path} does not exist; give a folder of {_kind(video)} or an npz")
    return npz_source(path, video)


def _kind(video: bool) -> str:
    return "videos" if video else "pictures"


def only_captions(source: Source, file: Path) -> Source:
    """The samples whose caption is a line of the file, in its order; ValueError counts the captions not found."""
    try:
        wanted = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--only: {file} cannot be read: {error}") from error
    if not wanted:
        raise ValueError(f"--only: {file} holds no caption; write one a line")
    places = defaultdict(list)
    for number, caption in enumerate(source.captions):
        places[caption].append(number)
    missing = [caption for caption in wanted if caption not in places]
    if missing:
        raise ValueError(
            f"--only: {len(missing)} of the {len(wanted)} captions in {file} are of no sample in {source.path}"
            f"{first_of(missing)}; remove these lines"
        )
    return source.take([number for caption in dict.fromkeys(wanted) for number in places[caption]])


def npz_source(path: Path, video: bool) -> Source:
    """An npz with x uint8 (n, H, W, 3) or (n, F, H, W, 3), and c (captions) or y or labels (whole numbers)."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        told = {name: file[name] for name in ("c", "y", "labels") if name in file.files}
        shape, dtype = _header(file, "x") if "x" in file.files else (None, None)
    except Exception as error:  # numpy's and zipfile's readers raise half a dozen kinds for damaged files
        raise ValueError(f"--data: {path} is no npz that can be read: {error}") from error
    wanted = "x uint8 (n, F, H, W, 3)" if video else "x uint8 (n, H, W, 3)"
    if shape is None:
        raise ValueError(f"--data: {path} holds {', '.join(file.files) or 'nothing'} and no x; save {wanted}")
    if dtype != np.uint8 or len(shape) != (5 if video else 4) or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"--data: x of {path} is {dtype} {shape}; this model needs {_kind(video)}: save {wanted}")
    count = shape[0]
    for name, values in told.items():
        if values.shape != (count,):
            raise ValueError(
                f"--data: {name} of {path} has shape {values.shape}, and x {count} samples: save ({count},)"
            )
    pixels: list[np.ndarray] = []  # x once it was read

    def read(number: int, frames: int | None) -> np.ndarray:
        if not pixels:
            pixels.append(file["x"])
        return pixels[0][number][:frames] if video else pixels[0][number]

    captions = told.get("c", np.full(count, None))
    labels = told.get("y", told.get("labels", np.full(count, None)))
    return Source(
        path=path,
        names=[str(number) for number in range(count)],
        stats=_stat(path),
        captions=[None if c is None else str(c) for c in captions],
        labels=[None if y is None else int(y) for y in labels],
        read=read,
        shape=shape[1:],
        forget=pixels.clear,
    )


def _header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in an npz, without its values."""
    with file.zip.open(f"{name}.npy") as entry:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(entry)](entry)
    return shape, dtype


def folder_source(path: Path, video: bool) -> Source:
    """A folder: the files that metadata.jsonl lists, or all in it and below, told by a .txt beside or by their folder.

    Sub-folders in order of their names are the classes 0, 1, ...
    """
    kinds = VIDEOS if video else PICTURES
    listed = _metadata(path)
    if listed is None:
        everything = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        files = [file for file in everything if file.suffix.lower() in kinds]
        if not files:
            raise ValueError(
                f"--data: {path} holds no {_kind(video)}: none of its {len(everything)} files is one of "
                f"{' '.join(kinds)}"
            )
        folders = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
        told = [_beside(file, path, folders) for file in files]
    else:
        files, told = [path / name for name in listed], [(row.get("text"), row.get("label")) for row in listed.values()]
    names = list(listed) if listed else [file.relative_to(path).as_posix() for file in files]
    read = read_video if video else lambda file, frames: read_picture(file)
    return Source(
        path=path,
        names=names,
        stats=[_stat(file) for file in files],
        captions=[caption for caption, _ in told],
        labels=[label for _, label in told],
        read=lambda number, frames: read(files[number], frames),
    )


def _beside(file: Path, root: Path, folders: list[str]) -> tuple[str | None, int | None]:
    """Caption and label of a file in a folder without metadata."""
    inside = file.relative_to(root).parts[0] if file.parent != root else None
    text = file.with_suffix(".txt")
    caption = inside
    if text.is_file():
        try:
            caption = " ".join(text.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--data: {text} cannot be read: {error}") from error
    return caption, None if inside is None else folders.index(inside)


def _metadata(path: Path) -> dict[str, dict[str, Any]] | None:
    """Rows of metadata.jsonl by file name, or None where there is no such file; ValueError names a bad line."""
    file = path / METADATA
    if not file.is_file():
        return None
    rows: dict[str, dict[str, Any]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data: {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[str(row["file_name"])] = row
            label = row.get("label")
            if not isinstance(row.get("text", ""), str) or not (label is None or type(label) is int):
                raise TypeError
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'--data: line {number} of {file} must be {{"file_name": ..., "text": "..."}} or {{..., "label": 3}}'
            ) from None
    if not rows:
        raise ValueError(f"--data: {file} lists no file")
    return rows


def _stat(file: Path) -> list[Any]:
    """Name, size and time of a file; a missing one is told of when it is read."""
    if not file.is_file():
        return [file.name]
    found = file.stat()
    return [file.name, found.st_size, found.st_mtime_ns]
