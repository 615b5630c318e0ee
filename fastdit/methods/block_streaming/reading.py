"""Reading tensors from checkpoint files into memory that the caller owns: no mapping, no growth of the file cache.

Pages of a mapped file count as resident memory of the process, and those of a file that was read stay in the system's
cache. So files are read by offset into reused buffers, past the cache where the file system lets one (O_DIRECT): that
takes a fiftieth of the processor's time, which the model needs. Elsewhere the system is told to forget what was read.
"""

import errno
import mmap
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.block_streaming.checkpoint import Entry

PAGE = 4096  # what places in files, addresses and sizes of direct reads are multiples of
CHUNK = 16 << 20  # bytes of one system call: after each a waiting Ctrl-C is heard
LARGE = 256 << 20  # bytes of a file from which on it is read past the cache: small pieces are quicker through it
DETOUR = 256 << 10  # bytes read at once where file and memory are not aligned alike; a multiple of PAGE
STAGE = 8 << 20  # bytes of the stage through which tensors go that change their dtype


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
        self._open: dict[tuple[Path, bool], int] = {}  # (file, whether past the system's cache)
        self._cached_only: set[Path] = set()
        self._lock, self._own = threading.Lock(), threading.local()
        self.close = weakref.finalize(self, _close, self._open)

    def read(self, wanted: Sequence[tuple[Entry, Tensor]]) -> None:
        """Fill each target tensor (contiguous, on the CPU, of the entry's shape) from the file, converting its dtype.

        OSError names the file; Cancelled if `cancelled` is set meanwhile.
        """
        wanted = sorted(wanted, key=lambda pair: (str(pair[0].file), pair[0].start))
        casts = [entry.nbytes for entry, target in wanted if entry.dtype != target.dtype]
        stage = torch.empty(min(STAGE, max(casts, default=0)), dtype=torch.uint8)
        for entry, target in wanted:
            if entry.dtype == target.dtype:
                self._fill(entry.file, entry.start, target.reshape(-1).view(torch.uint8))
            elif entry.nbytes:
                self._convert(entry, target.view(-1), stage)
        if self.drop_cache:
            self._forget([entry for entry, _ in wanted])

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
            self._fill(entry.file, entry.start + first * size, piece)
            target[first : first + count].copy_(piece.view(entry.dtype))

    def _fill(self, file: Path, start: int, target: Tensor) -> None:
        """Read the bytes of a file from `start` on into a tensor of bytes, past the system's cache if it can be."""
        direct = self.drop_cache and hasattr(os, "O_DIRECT") and file not in self._cached_only
        if direct and file.stat().st_size >= LARGE:
            try:
                self._fill_directly(file, start, target)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._cached_only.add(file)  # this file system has no direct reading
        descriptor, memory, done = self._descriptor(file, False), _memory(target), 0
        while done < len(target):
            self._look_up()
            done += _read_at(descriptor, memory[done : done + CHUNK], start + done, file)
        self.bytes_read += done

    def _forget(self, entries: Sequence[Entry]) -> None:
        """Have the system drop from its cache what lies between first and last of these: once, as it is slow."""
        for file in {entry.file for entry in entries} if hasattr(os, "posix_fadvise") else ():
            mine = [entry for entry in entries if entry.file == file]
            if (descriptor := self._open.get((file, False))) is not None:
                start, end = mine[0].start, mine[-1].start + mine[-1].nbytes
                os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)

    def _fill_directly(self, file: Path, start: int, target: Tensor) -> None:
        """The same, whole pages straight into place where file and memory are aligned alike, the rest by a detour."""
        descriptor, memory, size, done = self._descriptor(file, True), _memory(target), len(target), 0
        alike = (target.data_ptr() - start) % PAGE == 0
        while done < size:
            self._look_up()
            place = start + done
            inside = place % PAGE  # bytes of this page that are before the place
            if alike and not inside and size - done >= PAGE:
                whole = min(CHUNK, (size - done) // PAGE * PAGE)
                done += _read_at(descriptor, memory[done : done + whole], place, file)
                continue
            count = min(size - done, PAGE - inside if alike else DETOUR - inside)
            pages = -(-(inside + count) // PAGE) * PAGE
            detour = self._detour()
            count = min(count, _read_at(descriptor, detour[:pages], place - inside, file) - inside)
            if count <= 0:
                raise OSError(f"cannot read weights from {file}: it ends at byte {place}, and has been cut")
            memory[done : done + count] = detour[inside : inside + count]
            done += count
        self.bytes_read += done

    def _look_up(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def _detour(self) -> memoryview:
        """Page-aligned memory of this thread's own."""
        if not hasattr(self._own, "detour"):
            self._own.detour = memoryview(mmap.mmap(-1, DETOUR))
        return self._own.detour

    def _descriptor(self, file: Path, direct: bool) -> int:
        with self._lock:
            key = file, direct
            if key not in self._open:
                flags = os.O_RDONLY | (os.O_DIRECT if direct else getattr(os, "O_BINARY", 0))
                try:
                    self._open[key] = os.open(file, flags)
                except OSError as error:
                    raise _explained(error, file) from error
                if self.stamps.get(file, stamp(file)) != stamp(file):
                    raise OSError(f"{file} has changed since the pipeline was loaded: load the pipeline again")
                if not direct and hasattr(os, "posix_fadvise"):  # long stretches: read ahead in large pieces
                    os.posix_fadvise(self._open[key], 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return self._open[key]


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change: what tells one state of a file from another."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def page_aligned(nbytes: int, pin_memory: bool = False) -> Tensor:
    """Bytes in memory that begin with a page."""
    memory = torch.empty(nbytes + PAGE, dtype=torch.uint8, pin_memory=pin_memory)
    first = -memory.data_ptr() % PAGE
    return memory[first : first + nbytes]


def _close(descriptors: dict[tuple[Path, bool], int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


_seeking = threading.Lock()


def _read_at(descriptor: int, memory: memoryview, offset: int, file: Path) -> int:
    """Bytes read into memory from `offset` on; some at least."""
    try:
        if hasattr(os, "preadv"):
            done = os.preadv(descriptor, [memory], offset)
        else:  # Windows
            with _seeking:
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, len(memory))
            memory[: len(data)] = data
            done = len(data)
    except OSError as error:
        raise _explained(error, file) from error
    if done <= 0:
        raise OSError(f"cannot read weights from {file}: it ends at byte {offset}, and has been cut")
    return done


def _explained(error: OSError, file: Path) -> OSError:
    explained = OSError(f"cannot read weights from {file}: {error.strerror or error}")
    explained.errno = error.errno
    return explained


def _memory(tensor: Tensor) -> memoryview:
    array: Any = tensor.numpy()
    return memoryview(array)
