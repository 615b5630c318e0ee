"""Predicting memory and seconds of a run whose weights are streamed: the plan by structure, rates by measurement."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdit.core.activations import peak_activations
from fastdit.core.report import RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import PartForecast
from fastdit.models import configs
from fastdit.pipelines.loading import locate
from fastdit.pipelines.profiling import Geometry, ModelConfig

PROBE = 256 << 20  # bytes read to time the disk
CHUNK = 16 << 20


@dataclass(frozen=True)
class Machine:
    """Rates of this machine: bytes a second from files that nobody has read lately, MACs a second of linear layers."""

    reading: float
    computing: float


@dataclass(frozen=True)
class RunForecast:
    """Bytes and seconds: `seconds` of the transformer's steps, `reading` of reading every weight once."""

    parts: list[PartForecast]
    activations: int
    per_pass: tuple[float, float]  # seconds of computing, and of reading, in one pass of the transformer
    seconds: float
    reading: float


def forecast(
    model: str, loaded: ModelConfig, method: Method, geometry: Geometry, report: RunReport, dtype: Any, machine: Machine
) -> RunForecast:
    """Memory and time of a predicted run (`report`) under a load method, on a machine.

    A pass takes as long as the slower of reading and computing. Activations are those of one dense forward.
    """
    parts = method.forecast(parts_of(model, loaded, dtype), dtype)
    denoising = [part for part in parts if part.label.startswith("transformer")]
    read = max(part.read for part in denoising) / machine.reading
    passes = sum(row.passes for row in report.rows)
    computing = report.macs_executed / max(passes, 1) / machine.computing
    seconds = sum(
        row.passes * max(read, row.macs_executed / row.passes / machine.computing) for row in report.rows if row.passes
    )
    once = sum(part.weights for part in parts) / machine.reading
    batch = 2 if loaded.family.guidance == "batched" else 1
    inputs = loaded.family.inputs(loaded.transformer.config, batch, geometry.frames, geometry.height, geometry.width)
    activations = peak_activations(loaded.transformer, inputs, dtype)
    return RunForecast(parts, activations, (computing, read), seconds, once)


def parts_of(model: str, loaded: ModelConfig, dtype: Any) -> dict[str, Any]:
    """The models of a pipeline on the meta device; of a config that ships, the transformer alone."""
    import diffusers

    from fastdit.methods.block_streaming.construct import build, build_from, model_class

    if model in configs.names():
        transformer = loaded.transformer
        return {"transformer": build_from(lambda: type(transformer).from_config(transformer.config), dtype)}
    path = locate(model)
    index = diffusers.DiffusionPipeline.load_config(path)
    entries = {label: entry for label, entry in index.items() if isinstance(entry, list) and None not in entry}
    classes = {label: model_class(*entry) for label, entry in entries.items()}
    return {label: build(cls, path, label, dtype) for label, cls in classes.items() if cls is not None}


def measure(dtype: Any, files: Sequence[Path]) -> Machine:
    """The rates of this machine, in about two seconds: on the largest of the files, or one written for it."""
    return Machine(_reading_rate(files), _computing_rate(dtype))


def _reading_rate(files: Sequence[Path]) -> float:
    large = max(files, key=lambda file: file.stat().st_size, default=None)
    if large is not None and large.stat().st_size >= PROBE // 4:
        return _time_reading(large)
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(PROBE // CHUNK):
            file.write(os.urandom(CHUNK))
        file.flush()
        os.fsync(file.fileno())
        return _time_reading(Path(file.name))


def _time_reading(path: Path) -> float:
    """Bytes a second, the system's cache of this file dropped first where the system lets one."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        piece, size, began = memoryview(bytearray(CHUNK)), 0, time.perf_counter()
        while size < PROBE and (count := file.readinto(piece)):
            size += count
        return size / (time.perf_counter() - began)


def _computing_rate(dtype: Any, rows: int = 1024, width: int = 2048) -> float:
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(width, width).to(dtype)
    torch.nn.functional.linear(x, weight)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 1:
        torch.nn.functional.linear(x, weight)
        count += 1
    return count * rows * width * width / (time.perf_counter() - began)
