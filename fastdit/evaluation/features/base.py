"""What an extractor is, and the registry in which each file of this folder enters its own."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from fastdit.core.registry import Registry, discover


class Extractor(ABC):
    """A network with its preprocessing; the arguments of `__init__` are its options, with the command line's names.

    `identity` names all that decides the features (weights, resizing): statistics of another identity do not compare.
    `preprocess` runs in a worker process: a function or object that pickles and does not hold the network.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    dimension: int  # numbers a picture
    title: str  # what stands in brackets behind the name of a distance
    identity: str
    is_inception: ClassVar[bool] = False  # only then may a distance be called FID or KID
    preprocess: Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> (3, h, w)

    @abstractmethod
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of preprocessed pictures (B, 3, h, w)."""

    @abstractmethod
    def to(self, device: str) -> None:
        """Move the network."""

    def label(self, distance: str = "FD") -> str:
        """What the distance ("FD" or "KID") is called: FID and KID are of Inception, all others carry their name."""
        if self.is_inception:
            return "FID" if distance == "FD" else distance
        return f"{distance}({self.title})"


EXTRACTORS: Registry[type[Extractor]] = Registry("extractor")


def load_extractors() -> Registry[type[Extractor]]:
    """All extractors, the package's own ones imported."""
    import fastdit.evaluation.features

    discover(fastdit.evaluation.features)
    return EXTRACTORS


def open_extractor(name: str, **options: Any) -> Extractor:
    """The extractor of that name; ValueError for an option that was given (not None) and that it does not take."""
    cls = load_extractors()[name]
    known = inspect.signature(cls).parameters
    given = {key: value for key, value in options.items() if value is not None}
    if unknown := [key for key in given if key not in known]:
        takes = "; it takes " + ", ".join(f"--{key}" for key in known) if known else ""
        raise ValueError(f"--{unknown[0]} is no option of the features {name}{takes}")
    return cls(**given)


def check_file(path: Path | str | None, file: str, sha256: str, source: str, option: str) -> Path:
    """The path of a weights file (or of the folder that holds it); ValueError that says where to get it, or that it
    is damaged or another file: `sha256` is the digest in hex, or its first digits."""
    kind = "sha256" if len(sha256) == 64 else "sha256 beginning with"
    where = f"the file {file} ({kind} {sha256}) from {source}"
    if path is None:
        raise ValueError(f"needs {where}: download it once and give its path with --{option}; without it there is "
                         "--features efficientnet-lite0, whose distances are no FID")  # fmt: skip
    path = Path(path)
    path = path / file if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--{option} {path} does not exist: give {where}")
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(sha256):
        raise ValueError(f"--{option} {path} is another file or damaged (sha256 {digest.hexdigest()}): give {where}")
    return path


class Resize:
    """Resizes to side x side by Pillow's antialiased bicubic filter, aspect ratio not kept: uint8 (3, side, side)."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        image = Image.fromarray(picture).resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
