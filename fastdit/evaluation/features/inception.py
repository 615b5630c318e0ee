"""The Inception of FID as clean-fid runs it: the original network as TorchScript, resized by clean-fid's own code."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.evaluation.extras import require
from fastdit.evaluation.features.base import EXTRACTORS, Extractor, check_file

FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # as k-diffusion pins it
SOURCE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
MODES = ("clean", "legacy_tensorflow")


class CleanResize:
    """clean-fid's resizing of one picture in a worker process: float32 (3, h, w) in 0..255."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._resizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"mode": self.mode, "_resizer": None}  # clean-fid's is a closure, which does not pickle

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        if self._resizer is None:
            self._resizer = require("cleanfid.resize", "--features inception").build_resizer(self.mode)
        return np.ascontiguousarray(self._resizer(picture).astype(np.float32).transpose(2, 0, 1))


class Inception(Extractor):
    """Pool features at 299 x 299. `resize`: "clean" (Parmar et al., 2022), or "legacy_tensorflow", which resizes in the
    network as the original FID and ADM's reference statistics did."""

    name = "inception"
    summary = f"Inception of FID, clean-fid's way; its file {FILE} by path"
    dimension = 2048
    title = name
    is_inception = True

    def __init__(self, inception: str | Path | None = None, resize: str = MODES[0]) -> None:
        if resize not in MODES:
            raise ValueError(f"--resize {resize}: use {' or '.join(MODES)}")
        wrapper = require("cleanfid.inception_torchscript", "--features inception").InceptionV3W
        try:
            path = check_file(inception, FILE, SHA256, SOURCE + FILE, "inception")
        except ValueError as error:
            raise ValueError(f"--features inception: {error}") from error
        self.identity = self.name if resize == "clean" else f"{self.name}:{resize}"
        self.preprocess = CleanResize(resize)
        with tempfile.TemporaryDirectory() as folder:
            if path.name != FILE:  # clean-fid opens that name only
                _link(path, Path(folder) / FILE)
                path = Path(folder) / FILE
            # download=False: clean-fid would fetch 90 MB into the temporary folder and trust whatever lies there
            inside = resize == "legacy_tensorflow"
            self.network = wrapper(str(path.parent), download=False, resize_inside=inside).eval().requires_grad_(False)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.network(batch)

    def to(self, device: str) -> None:
        self.network.to(device)


def _link(path: Path, link: Path) -> None:
    try:
        os.symlink(path.resolve(), link)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(path, link)


EXTRACTORS.register(Inception.name, Inception)
