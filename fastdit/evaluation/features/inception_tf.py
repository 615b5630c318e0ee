"""The Inception of FID as torch-fidelity runs it: TensorFlow 1's resizing and weights, bit by bit."""

from pathlib import Path

import numpy as np
import torch

from fastdit.evaluation.extras import require
from fastdit.evaluation.features.base import EXTRACTORS, Extractor, check_file

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # its first digits stand in the file's name, as torch.hub has it
SOURCE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"


def channels_first(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) to (3, H, W): the network itself resizes."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


class InceptionTF(Extractor):
    """Pool features, resized inside the network as TensorFlow 1 does: for ADM's reference statistics."""

    name = identity = title = "inception-tf"
    summary = f"Inception of FID, torch-fidelity's way (TensorFlow 1's resizing); its file {FILE} by path"
    dimension = 2048
    is_inception = True
    preprocess = staticmethod(channels_first)

    def __init__(self, inception: str | Path | None = None) -> None:
        self.path = weights(inception)
        module = require("torch_fidelity.feature_extractor_inceptionv3", "--features inception-tf")
        self.network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(self.path))

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.network(batch)[0]

    def to(self, device: str) -> None:
        self.network.to(device)


def weights(path: str | Path | None) -> Path:
    """The checked weights file; ValueError also if it holds anything but tensors."""
    try:
        path = check_file(path, FILE, SHA256, SOURCE + FILE, "inception")
    except ValueError as error:
        raise ValueError(f"--features inception-tf: {error}") from error
    try:
        # torch-fidelity unpickles without limits, and the name's digits are too few to trust a file by
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # unpicklers raise anything
        raise ValueError(f"--inception {path} holds more than tensors, or is damaged: {error}") from error
    return path


EXTRACTORS.register(InceptionTF.name, InceptionTF)
