"""Rows of tensors on disk: made once, in files of some rows each that appear whole, and mapped when they are read.

A run that was stopped while it made them goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastdit.core.files import write_whole

Rows = dict[str, torch.Tensor]  # name -> (n, ...)
FORMAT = 1  # of what is cached: a later fastdit that encodes in another way raises it
PER_FILE = 256
READ = 4096  # numbers of each weight that tell it from another


class CachedRows:
    """Named tensors of `count` rows in the files of a folder, in order."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [load_file(file) for file in files]  # mapped: pages come in as rows are asked for

    def __getitem__(self, indices: Sequence[int]) -> Rows:
        """The rows of some indices: name -> (len(indices), ...), copied."""
        places = [divmod(index, PER_FILE) for index in indices]
        return {name: torch.stack([self._files[file][name][row] for file, row in places]) for name in self._files[0]}


def cached_rows(
    folder: Path, count: int, batch: int, make: Callable[[range], Rows], progress: Callable[[int, int], None]
) -> CachedRows:
    """`count` rows in `folder`; those that no readable file holds are made, `make(range)` at most `batch` at a time.

    OSError names the file where the disk is full; what was written before stays and is used the next time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, start in enumerate(range(0, count, PER_FILE)):
        wanted = range(start, min(start + PER_FILE, count))
        files.append(folder / f"{number:05}.safetensors")
        if _holds(files[-1], len(wanted)):
            continue
        parts = []
        for first in range(wanted.start, wanted.stop, batch):
            progress(first, count)
            parts.append(make(range(first, min(first + batch, wanted.stop))))
        rows = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        write_whole(files[-1], lambda temporary, rows=rows: save_file(rows, temporary))  # type: ignore[misc]
        progress(wanted.stop, count)
    return CachedRows(files)


def _holds(file: Path, rows: int) -> bool:
    """Whether a file can be read and has so many rows."""
    try:
        with safe_open(file, "pt") as held:
            names = list(held.keys())
            return bool(names) and all(held.get_slice(name).get_shape()[0] == rows for name in names)
    except (OSError, SafetensorError):
        return False


def key_of(*parts: Any) -> str:
    """A short name for JSON-ready data."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(part: Any) -> str:
    """A short name for a model's weights, read in samples, or for a tokenizer's vocabulary."""
    digest = hashlib.sha256(type(part).__name__.encode())
    for piece in _pieces(part):
        digest.update(piece)
    return digest.hexdigest()[:20]


def _pieces(part: Any) -> Iterator[bytes]:
    if isinstance(part, nn.Module):
        config: Any = part.config
        yield json.dumps(dict(getattr(config, "to_dict", lambda: config)()), default=str, sort_keys=True).encode()
        for name, weight in part.state_dict().items():
            yield f"{name} {tuple(weight.shape)} {weight.dtype}".encode()
            flat = weight.detach().reshape(-1)
            yield flat[:: max(1, len(flat) // READ)].float().cpu().numpy().tobytes()
    elif hasattr(part, "get_vocab"):
        yield json.dumps(sorted(part.get_vocab().items())).encode()
