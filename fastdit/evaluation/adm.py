"""ADM's sample files: an npz with `arr_0`, uint8 (N, H, W, 3), as guided-diffusion's evaluator reads it.

50,000 pictures of 256 x 256 are 9.8 GB: neither reading nor writing holds more than one picture in memory.
"""

import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fastdit.core.files import write_whole
from fastdit.evaluation.samples import Samples

ARRAY = "arr_0"


class Pack:
    """The pictures of one npz by number; mapped where they are stored as they are, else loaded once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape, self.offset = _layout(path)
        self._pictures: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:  # a worker process maps the file again instead of getting its pixels
        return {**self.__dict__, "_pictures": None}

    def read(self, name: str) -> np.ndarray:
        """Picture number `name` as uint8 (1, H, W, 3)."""
        if self._pictures is None:
            if self.offset is None:
                with np.load(self.path, allow_pickle=False) as file:
                    self._pictures = file[ARRAY]
            else:
                self._pictures = np.memmap(self.path, np.uint8, "r", self.offset, self.shape)
        return np.array(self._pictures[int(name)][None])


def _layout(path: Path) -> tuple[tuple[int, int, int, int], int | None]:
    """Shape of the pictures, and where their bytes begin in the file (None: compressed, or in another order)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{ARRAY}.npy" not in names:
                held = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
                raise ValueError(f"{path} holds {held} and no {ARRAY}: it is no file of samples"
                                 + (", but one of reference statistics" if "mu.npy" in names else ""))  # fmt: skip
            entry = archive.getinfo(f"{ARRAY}.npy")
            with archive.open(entry) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(file)
                header = file.tell()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no npz that can be read: {error}") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"{path}: {ARRAY} must be uint8 (N, H, W, 3), it is {dtype} {shape}")
    if entry.file_size < header + np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is cut short: {ARRAY} {shape} needs more bytes than it holds")
    mapped = entry.compress_type == zipfile.ZIP_STORED and not fortran
    return shape, _data_start(path, entry) + header if mapped else None


def _data_start(path: Path, entry: zipfile.ZipInfo) -> int:
    """First byte of an entry's data: behind its local header, whose extra field may differ from the directory's."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))
    return entry.header_offset + 30 + name + extra


def open_pack(path: str | Path) -> Samples:
    """The pictures of an ADM npz as samples named by their number; ValueError if it holds none."""
    pack_ = Pack(Path(path))
    return Samples(Path(path), [f"{index:06d}" for index in range(pack_.shape[0])], pack_.read)


def pack(
    samples: Samples, out: Path, num: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int, int, int]:
    """Write the first `num` pictures (all, if None) as ADM's npz and return the shape; nothing is left if it fails.

    ValueError if a picture cannot be read, is a video, or has another size: a batch with holes is not comparable.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out}: ADM's evaluator reads .npz files")
    names = samples.names[:num]
    if num is not None and len(names) < num:
        raise ValueError(f"--num {num}: {samples.root} holds {len(names)} samples")
    shape = (len(names), *_picture(samples, names[0]).shape)
    size = int(np.prod(shape, dtype=np.int64))
    free = shutil.disk_usage(out.parent).free
    if free < size + (1 << 20):
        raise ValueError(f"{out}: {size >> 20} MiB are needed and {free >> 20} MiB are free on that disk")
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}

    def write(temporary: Path) -> None:
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
            archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as file,
        ):
            npy.write_array_header_1_0(file, header)  # version 1.0 is the one that ADM's own reader knows
            for index, name in enumerate(names):
                picture = _picture(samples, name)
                if picture.shape != shape[1:]:
                    raise ValueError(f"{name} is {_size(picture.shape)} and {names[0]} {_size(shape[1:])}: "
                                     "one npz holds one size")  # fmt: skip
                file.write(picture.tobytes())
                if progress:
                    progress(index + 1, len(names))

    write_whole(out, write)
    return shape


def _picture(samples: Samples, name: str) -> np.ndarray:
    frames = samples.read(name)
    if len(frames) != 1:
        raise ValueError(f"{name} is a video of {len(frames)} frames: ADM's npz holds pictures")
    return frames[0]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
