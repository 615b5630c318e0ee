"""One streamed model: which of its units are in memory, which are under way, and which comes next."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import torch
from torch import nn

from fastdit.methods.block_streaming.loader import Buffer, Loader
from fastdit.methods.block_streaming.residency import Residency, plan_residency
from fastdit.methods.block_streaming.units import Unit

AHEAD = 2  # units that are read ahead


@dataclass
class Flight:
    """A unit that is being read."""

    future: "Future[None]"
    buffer: Buffer


class Component:
    """A model cut into units. Only the computing thread touches it; the loader's thread only fills buffers."""

    def __init__(self, label: str, module: nn.Module, units: list[Unit], core: Unit, loader: Loader) -> None:
        self.label, self.module, self.loader = label, module, loader
        self.units, self.core = units, core
        self.residency: Residency | None = None  # None: nothing is reserved, every unit is on disk
        self.waited = 0.0
        self.reads = 0
        # which unit comes after which: in the order of the model's parts, until a pass has shown otherwise
        self.after = {unit: self.units[(index + 1) % len(self.units)] for index, unit in enumerate(self.units)}
        self.last: Unit | None = None
        self._reset()

    def _reset(self) -> None:
        self.flights: dict[Unit, Flight] = {}
        self.holding: dict[Unit, Buffer] = {}  # loaded units
        self.slots: list[Buffer] = []  # all buffers that streamed units share
        self.free: list[Buffer] = []
        self.kept: set[Unit] = set()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def sizes(self) -> list[int]:
        return [unit.nbytes for unit in self.units]

    @property
    def total(self) -> int:
        """Bytes of all units."""
        return sum(self.sizes)

    def coming(self) -> list[str]:
        """Names of the units that are under way, or in memory."""
        return [unit.name for unit in self.units if unit.loaded or unit in self.flights]

    @property
    def held(self) -> int:
        """Bytes of buffers in memory now."""
        reading = (flight.buffer for unit, flight in self.flights.items() if unit in self.kept)
        kept = (buffer for unit, buffer in self.holding.items() if unit in self.kept)
        return sum(len(buffer.data) for buffer in (*self.slots, *reading, *kept))

    @property
    def reserved(self) -> int:
        """Bytes that this component may hold as things stand."""
        return self.residency.nbytes if self.residency else 0

    def reserve(self, budget: int) -> None:
        """Decide what is kept within `budget` bytes."""
        self.residency = plan_residency(self.sizes, budget)
        self.kept = {self.units[index] for index in self.residency.kept}
        self.slots = [Buffer.of(self.residency.slot_bytes, self.device) for _ in range(self.residency.slots)]
        self.free = list(self.slots)

    def acquire(self, unit: Unit) -> None:
        """Have a unit's weights in place: its forward is about to begin."""
        if self.last is not None:
            self.after[self.last] = unit
        self.last = unit
        if not unit.loaded:
            began = time.perf_counter()
            flight = self.flights.get(unit) or self._send(unit)
            try:
                flight.future.result()  # after Ctrl-C the flight stays, as its buffer is still being filled
            except Exception:
                del self.flights[unit]
                if unit not in self.kept:
                    self.free.append(flight.buffer)
                raise
            self.holding[unit] = flight.buffer
            del self.flights[unit]
            unit.fill(flight.buffer.data)
            self.waited += time.perf_counter() - began
        self.prefetch(unit)

    def release(self, unit: Unit) -> None:
        """A unit's forward is over: its buffer is free for the next, unless the unit is kept."""
        if unit in self.kept or not unit.loaded:
            return
        unit.empty()
        buffer = self.holding.pop(unit)
        buffer.release()
        self.free.append(buffer)
        self.prefetch(unit)

    def prefetch(self, unit: Unit) -> None:
        """Begin to read what comes after a unit, as far as there is room."""
        for following in self._following(unit):
            if len(self.flights) >= AHEAD:
                return
            if following.loaded or following in self.flights:
                continue
            if following not in self.kept and not self.free:
                return
            self._send(following)

    def _following(self, unit: Unit) -> Iterator[Unit]:
        seen = {unit}
        while (unit := self.after[unit]) not in seen:
            seen.add(unit)
            yield unit

    def _send(self, unit: Unit) -> Flight:
        if unit in self.kept:
            buffer = Buffer.of(unit.nbytes, self.device)
        else:
            if not self.free:
                self._recall()
            buffer = self.free.pop()
        self.reads += 1
        self.flights[unit] = Flight(self.loader.submit(unit, buffer), buffer)
        return self.flights[unit]

    def _recall(self) -> None:
        """Get a buffer back from a unit that was expected and did not come."""
        unit = next((unit for unit in reversed(self.flights) if unit not in self.kept), None)
        if unit is None:
            raise RuntimeError(f"{self.label}: units run inside of each other, and one buffer cannot hold two of them")
        flight = self.flights.pop(unit)
        _finish(flight.future)
        self.free.append(flight.buffer)

    def stop(self) -> None:
        """End of a run: nothing is under way any more; kept units stay."""
        for flight in self.flights.values():
            _finish(flight.future)
        self.flights.clear()
        for unit in [unit for unit in self.holding if unit not in self.kept]:
            unit.empty()
            del self.holding[unit]
        for unit in self.units:  # also where Ctrl-C came between two lines
            if unit.loaded and unit not in self.holding:
                unit.empty()
        self.free, self.last = list(self.slots), None

    def evict(self) -> None:
        """Give all memory back."""
        self.stop()
        for unit in self.units:
            if unit.loaded:
                unit.empty()
        self._reset()
        self.residency = None


def _finish(future: "Future[None]") -> None:
    """Wait until a future is over, whatever came of it."""
    future.cancel()
    with contextlib.suppress(Exception, CancelledError):  # nobody asked for it
        future.result()
