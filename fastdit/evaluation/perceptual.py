"""LPIPS (Zhang et al., 2018): a learned distance of two pictures, through the `lpips` package of its authors.

The package brings the linear heads; the trunk (ImageNet weights of torchvision) is a file that the user has. Nothing is
downloaded here. LPIPS is defined by exactly these files, so another one is refused.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.evaluation.extras import require

TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}  # the name ends in the file's sha256
SOURCE = "https://download.pytorch.org/models/"
LEAST = 32  # pixels: the trunks halve the picture four times
_BATCH = 8


@dataclass(frozen=True)
class Perceptual:
    """A distance with its name: `LPIPS(alex)` only with the published weights."""

    key: str
    name: str
    network: Any
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, reference: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Distance of each frame (T,) of two uint8 (T, H, W, 3); 0 is identical. ValueError for mismatched shapes."""
        if reference.shape != other.shape:
            raise ValueError(f"frames must have one shape, got {reference.shape} and {other.shape}")
        if min(reference.shape[1:3]) < LEAST:
            size = " x ".join(map(str, reference.shape[1:3]))
            raise ValueError(f"{self.name} needs pictures of at least {LEAST} x {LEAST} pixels, got {size}")
        parts = []
        for start in range(0, len(reference), _BATCH):
            a, b = (self._scaled(frames[start : start + _BATCH]) for frames in (reference, other))
            parts.append(self.network(a, b).flatten().double().cpu().numpy())
        return np.concatenate(parts)

    def _scaled(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 (T, H, W, 3) -> float32 (T, 3, H, W) in [-1, 1], what the networks were trained on; not [0, 1]."""
        if frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8, got {frames.dtype}")
        return (torch.from_numpy(np.array(frames)).movedim(-1, 1).float() / 127.5 - 1).to(self.device)


def lpips(net: str = "alex", weights: str | Path | None = None, device: str = "cpu") -> Perceptual:
    """LPIPS version 0.1 with this trunk; `weights` is its file or folder, without it torch hub's cache is looked up.

    ValueError if the package or the file is absent, or if the file is not the published one.
    """
    path = _trunk_file(net, weights)
    network = _network(net)
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.net.load_state_dict({own: state[theirs] for own, theirs in _trunk_names(network).items()})
    return Perceptual(f"lpips_{net}", f"LPIPS({net})", network.to(device), device)


def random_trunk(net: str = "alex") -> Perceptual:
    """The same path with a random trunk, for tests without weights: its numbers are not LPIPS and not named so."""
    return Perceptual(f"random_{net}", f"random trunk ({net}), not LPIPS", _network(net))


def _network(net: str) -> Any:
    package = require("lpips", "LPIPS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision by arguments of before
        return package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()


def _trunk_names(network: Any) -> dict[str, str]:
    """Names in the network by names in torchvision's file: lpips cuts `features` into slices and keeps the numbers."""
    return {own: f"features.{own.split('.', 1)[1]}" for own in network.net.state_dict()}  # slice2.3.weight


def _trunk_file(net: str, weights: str | Path | None) -> Path:
    if net not in TRUNKS:
        raise ValueError(f"LPIPS has no trunk {net!r} here, use one of {', '.join(TRUNKS)}")
    name = TRUNKS[net]
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints"
    path = path / name if weights is None or path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"LPIPS({net}) needs the file {name}, and {path} does not exist: download {SOURCE}{name} and give its path "
            "with --lpips-weights (weights= in Python)"
        )
    with open(path, "rb") as file:
        digest = _sha256(file)
    if not digest.startswith(published := name.removesuffix(".pth").rpartition("-")[2]):
        raise ValueError(
            f"{path} is not {name} (its sha256 begins with {digest[:8]}, not {published}): it is another file or was "
            f"not downloaded whole; get {SOURCE}{name}"
        )
    return path


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
