"""Where every tensor of a safetensors checkpoint stands on disk, without reading or mapping its data.

The format: 8 bytes little-endian length, a JSON header with dtype, shape and offsets, then the data.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
STEMS = ("diffusion_pytorch_model", "model")  # the names that diffusers and transformers give
LARGEST_HEADER = 100 << 20  # as the format's own reader: more is a damaged file


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: where its bytes begin, how many they are, dtype and shape."""

    file: Path
    start: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_entries(folder: Path, variant: str | None = None) -> dict[str, Entry]:
    """All tensors of a component's folder by name; ValueError for a missing, truncated or damaged file."""
    entries: dict[str, Entry] = {}
    for file in _files(folder, variant):
        entries.update(read_header(file))
    return entries


def _files(folder: Path, variant: str | None) -> list[Path]:
    """The weight files: all shards of an index, or the one file; the variant's where there are any."""
    for suffix in (f".{variant}", "") if variant else ("",):
        for stem in STEMS:
            index = folder / f"{stem}.safetensors.index{suffix}.json"
            if index.is_file():
                return _shards(index)
            single = folder / f"{stem}{suffix}.safetensors"
            if single.is_file():
                return [single]
    variants = {path.name.split(".")[-2] for stem in STEMS for path in folder.glob(f"{stem}.*.safetensors")}
    if variant is None and len(variants) == 1:
        return _files(folder, variants.pop())
    other = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
    found = f"only {', '.join(other)}, which cannot be read in parts" if other else "no weights"
    raise ValueError(f"{folder} holds {found}: block streaming reads .safetensors files; save the model again as such")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error}): fetch it again") from None
    files = [index.parent / name for name in names]
    for file in files:
        if file.parent.resolve() != index.parent.resolve():
            raise ValueError(f"{index} names {file.name} outside its own folder: fetch it again")
        if not file.is_file():
            raise ValueError(f"shard {file} is missing, which {index.name} lists: fetch it again")
    return files


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one file; ValueError names it where it is shorter than it says, or no safetensors file."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"{file} is truncated or no safetensors file: fetch it again")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: value for name, value in header.items() if name != "__metadata__"}
            found = {name: _entry(file, 8 + length, value) for name, value in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} has a damaged header ({error}): fetch it again") from None
    end = max((entry.start + entry.nbytes for entry in found.values()), default=0)
    if size < end:
        raise ValueError(f"{file} is truncated: {size} of {end} bytes are there; fetch it again")
    return found


def _entry(file: Path, data: int, value: dict) -> Entry:
    begin, end = value["data_offsets"]
    dtype, shape = DTYPES[value["dtype"]], tuple(value["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
        raise ValueError("a tensor's shape and offsets disagree")
    return Entry(file, data + begin, end - begin, dtype, shape)
