"""One thread that fills buffers from disk while the model computes."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.block_streaming.reading import Files, page_aligned
from fastdit.methods.block_streaming.units import Unit


@dataclass(eq=False)
class Buffer:
    """Bytes on the computing device; `used` is the CUDA event after which they may be overwritten."""

    data: Tensor
    used: Any = None

    @classmethod
    def of(cls, nbytes: int, device: torch.device) -> "Buffer":
        on_cpu = device.type == "cpu"
        buffer = cls(page_aligned(nbytes) if on_cpu else torch.empty(nbytes, dtype=torch.uint8, device=device))
        buffer.release()  # the allocator may hand out memory that queued kernels still read
        return buffer

    def release(self) -> None:
        """What was queued on the device so far may still read the bytes."""
        if self.data.is_cuda:
            self.used = torch.cuda.Event()
            self.used.record(torch.cuda.current_stream(self.data.device))


class Session:
    """A thread and the files that it reads, from the first unit asked for to the end of a run."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="fastdit-streaming")

    def close(self) -> None:
        self.files.cancelled.set()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.files.close()


class Loader:
    """Reads units in the order asked for; thread and files live from the first use to `close`, and then anew."""

    def __init__(self, drop_cache: bool, stamps: Mapping[Path, tuple[int, int]]) -> None:
        self.drop_cache, self.stamps = drop_cache, stamps
        self.seconds, self._bytes = 0.0, 0
        self._session: Session | None = None
        self._pinned: Tensor | None = None  # through which bytes go to a CUDA device
        self._streams: dict[torch.device, Any] = {}

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = Session(Files(self.drop_cache, self.stamps))
        return self._session

    @property
    def files(self) -> Files:
        return self.session.files

    @property
    def bytes_read(self) -> int:
        """Since `restart`."""
        return self._bytes + (self._session.files.bytes_read if self._session else 0)

    def restart(self) -> None:
        """Count anew."""
        self.seconds, self._bytes = 0.0, 0

    def submit(self, unit: Unit, buffer: Buffer) -> "Future[None]":
        """Begin to read a unit's weights into a buffer."""
        return self.session.executor.submit(self.load, unit, buffer, self.files)

    def cancel(self) -> None:
        """Have the thread stop reading; futures end with `Cancelled`."""
        if self._session is not None:
            self._session.files.cancelled.set()

    def close(self) -> None:
        """Let thread and files go. Whatever interrupts this, the next use has new ones."""
        self._bytes = self.bytes_read
        session, self._session, self._pinned = self._session, None, None
        if session is not None:
            session.close()

    def load(self, unit: Unit, buffer: Buffer, files: Files) -> None:
        """Read a unit's weights into a buffer, in this thread."""
        began = time.perf_counter()
        entries = [entry for _, entry in unit.tensors]
        if buffer.data.device.type == "cpu":
            files.read(list(zip(entries, unit.views(buffer.data), strict=True)))
        else:
            self._through_pinned(unit, entries, buffer, files)
        self.seconds += time.perf_counter() - began

    def _through_pinned(self, unit: Unit, entries: list, buffer: Buffer, files: Files) -> None:
        device, pinned = buffer.data.device, self._pinned
        if pinned is None or len(pinned) < unit.nbytes:
            pinned = self._pinned = page_aligned(unit.nbytes, pin_memory=True)
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream, pinned = self._streams[device], pinned[: unit.nbytes]
        files.read(list(zip(entries, unit.views(pinned), strict=True)))
        with torch.cuda.stream(stream):
            if buffer.used is not None:
                stream.wait_event(buffer.used)
            buffer.data[: unit.nbytes].copy_(pinned, non_blocking=True)
        stream.synchronize()  # this thread waits; the computing one goes on
