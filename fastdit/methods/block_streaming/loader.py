"""One thread that fills buffers from disk while the model computes."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.block_streaming.reading import Files
from fastdit.methods.block_streaming.units import Unit


@dataclass(eq=False)
class Buffer:
    """Bytes on the computing device; `used` is the CUDA event after which they may be overwritten."""

    data: Tensor
    used: Any = None

    @classmethod
    def of(cls, nbytes: int, device: torch.device) -> "Buffer":
        return cls(torch.empty(nbytes, dtype=torch.uint8, device=device))

    def release(self) -> None:
        """What was queued on the device so far may still read the bytes."""
        if self.data.is_cuda:
            self.used = torch.cuda.Event()
            self.used.record(torch.cuda.current_stream(self.data.device))


class Loader:
    """Reads units in the order asked for; the thread starts with the first and ends with `close`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.seconds = 0.0  # spent reading
        self._executor: ThreadPoolExecutor | None = None
        self._pinned: Tensor | None = None  # through which bytes go to a CUDA device
        self._streams: dict[torch.device, Any] = {}

    def submit(self, unit: Unit, buffer: Buffer) -> "Future[None]":
        """Begin to read a unit's weights into a buffer."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="fastdit-streaming")
        return self._executor.submit(self.load, unit, buffer)

    def close(self) -> None:
        """Stop what is under way and let thread and files go; a later `submit` starts anew."""
        if self._executor is not None:
            self.files.cancelled.set()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
            self.files.cancelled.clear()
        self._pinned = None
        self.files.close()

    def load(self, unit: Unit, buffer: Buffer) -> None:
        """Read a unit's weights into a buffer, in this thread."""
        began = time.perf_counter()
        entries = [entry for _, entry in unit.tensors]
        if buffer.data.device.type == "cpu":
            self.files.read(list(zip(entries, unit.views(buffer.data), strict=True)))
        else:
            self._through_pinned(unit, entries, buffer)
        self.seconds += time.perf_counter() - began

    def _through_pinned(self, unit: Unit, entries: list, buffer: Buffer) -> None:
        device = buffer.data.device
        if self._pinned is None or len(self._pinned) < unit.nbytes:
            self._pinned = torch.empty(unit.nbytes, dtype=torch.uint8, pin_memory=True)
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream, pinned = self._streams[device], self._pinned[: unit.nbytes]
        self.files.read(list(zip(entries, unit.views(pinned), strict=True)))
        with torch.cuda.stream(stream):
            if buffer.used is not None:
                stream.wait_event(buffer.used)
            buffer.data[: unit.nbytes].copy_(pinned, non_blocking=True)
        stream.synchronize()  # this thread waits; the computing one goes on
