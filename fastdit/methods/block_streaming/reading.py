"""Reading tensors from checkpoint files into memory that the caller owns: no mapping, no growth of the file cache.

Pages of a mapped file count as resident memory of the process, and those of a file that was read stay in the system's
cache; so files are read by offset into reused buffers, and the system is told to forget what was read.
"""

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.block_streaming.checkpoint import Entry

CHUNK = 16 << 20  # bytes of one system call: after each a waiting Ctrl-C is heard
STAGE = 8 << 20  # bytes of the stage through which tensors go that change their dtype
VECTORS = 512  # buffers of one system call; the least limit of systems is 1,024


class Cancelled(Exception):
    """Reading was stopped because the run ended."""


class Files:
    """Checkpoint files, opened when first read and closed by `close`, or when nobody has this object any more.

    `stamps` tell size and time of change that each file must still have.
    """

    def __init__(self, drop_cache: bool = True, stamps: Mapping[Path, tuple[int, int]] | None = None) -> None:
        self.drop_cache, self.stamps = drop_cache, stamps or {}
        self.cancelled = threading.Event()
        self.bytes_read = 0
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _close, self._open)

    def read(self, wanted: Sequence[tuple[Entry, Tensor]]) -> None:
        """Fill each target tensor (contiguous, on the CPU, of the entry's shape) from the file, converting its dtype.

        OSError names the file; Cancelled if `cancelled` is set meanwhile.
        """
        wanted = sorted(wanted, key=lambda pair: (str(pair[0].file), pair[0].start))
        same = [(entry, _bytes(target)) for entry, target in wanted if entry.dtype == target.dtype]
        for run in _runs(same):
            self._fill(run[0][0].file, run[0][0].start, [_memory(target) for _, target in run])
        cast = [(entry, target) for entry, target in wanted if entry.dtype != target.dtype and entry.nbytes]
        if cast:
            stage = torch.empty(min(STAGE, max(entry.nbytes for entry, _ in cast)), dtype=torch.uint8)
            for entry, target in cast:
                self._convert(entry, target.view(-1), stage)

    def rows(self, entry: Entry, rows: Sequence[int], target: Tensor) -> None:
        """Fill target (len(rows), C) with these rows of a matrix."""
        width = entry.nbytes // entry.shape[0]
        parts = [Entry(entry.file, entry.start + row * width, width, entry.dtype, entry.shape[1:]) for row in rows]
        self.read(list(zip(parts, target.unbind(0), strict=True)))

    def _convert(self, entry: Entry, target: Tensor, stage: Tensor) -> None:
        size, step = entry.dtype.itemsize, len(stage) // entry.dtype.itemsize
        for first in range(0, len(target), step):
            count = min(step, len(target) - first)
            piece = stage[: count * size]
            self._fill(entry.file, entry.start + first * size, [_memory(piece)])
            target[first : first + count].copy_(piece.view(entry.dtype))

    def _fill(self, file: Path, start: int, views: list[memoryview]) -> None:
        """Read consecutive bytes of a file into consecutive views."""
        descriptor = self._descriptor(file)
        views = [part for view in views for part in _split(view)]
        offset, first = start, 0
        while first < len(views):
            if self.cancelled.is_set():
                raise Cancelled
            last, size = first, 0
            while last < len(views) and last - first < VECTORS and (last == first or size < CHUNK):
                size += len(views[last])
                last += 1
            done = _read_at(descriptor, views[first:last], offset, file)
            offset += done
            while first < last and done >= len(views[first]):
                done -= len(views[first])
                first += 1
            if done:
                views[first] = views[first][done:]
        self.bytes_read += offset - start
        if self.drop_cache and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, start, offset - start, os.POSIX_FADV_DONTNEED)

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._open:
                try:
                    self._open[file] = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                except OSError as error:
                    raise OSError(f"cannot read weights from {file}: {error.strerror or error}") from error
                if self.stamps.get(file, stamp(file)) != stamp(file):
                    raise OSError(f"{file} has changed since the pipeline was loaded: load the pipeline again")
                if hasattr(os, "posix_fadvise"):  # long stretches: read ahead in large pieces, 3 times faster when cold
                    os.posix_fadvise(self._open[file], 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return self._open[file]


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change: what tells one state of a file from another."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _close(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


_seeking = threading.Lock()


def _read_at(descriptor: int, views: list[memoryview], offset: int, file: Path) -> int:
    """Bytes read into the views from `offset` on; some at least."""
    try:
        if hasattr(os, "preadv"):
            done = os.preadv(descriptor, views, offset)
        else:  # Windows
            with _seeking:
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, len(views[0]))
            views[0][: len(data)] = data
            done = len(data)
    except OSError as error:
        raise OSError(f"cannot read weights from {file}: {error.strerror or error}") from error
    if done <= 0:
        raise OSError(
            f"cannot read weights from {file}: it ends at byte {offset}, and has been cut since it was opened"
        )
    return done


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8)


def _memory(tensor: Tensor) -> memoryview:
    array: Any = tensor.numpy()
    return memoryview(array)


def _split(view: memoryview) -> list[memoryview]:
    return [view[first : first + CHUNK] for first in range(0, len(view), CHUNK)]


def _runs(pairs: list[tuple[Entry, Tensor]]) -> list[list[tuple[Entry, Tensor]]]:
    """Sorted entries grouped so that each group is one stretch of one file."""
    runs: list[list[tuple[Entry, Tensor]]] = []
    for pair in pairs:
        before = runs[-1][-1][0] if runs else None
        if before and before.file == pair[0].file and before.start + before.nbytes == pair[0].start:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    return runs
