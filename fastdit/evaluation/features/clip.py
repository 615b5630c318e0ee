"""CLIP's picture features through transformers' CLIPModel, by Hub id or path."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.evaluation.features.base import EXTRACTORS, Extractor

DEFAULT = "openai/clip-vit-large-patch14"


def pixels(processor: Any, picture: np.ndarray) -> np.ndarray:
    """The checkpoint's own resizing, cropping and scaling of uint8 (H, W, 3): float32 (3, h, w)."""
    found = processor(images=picture, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    return np.asarray(found, np.float32)[0]


class Clip(Extractor):
    """Projected picture features of a CLIP checkpoint; `score` needs the text side too, see clip_score.py."""

    name = "clip"
    summary = f"CLIP's picture features, --clip ID_OR_PATH [default: {DEFAULT}]"

    def __init__(self, clip: str | Path = DEFAULT) -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self.network = CLIPModel.from_pretrained(str(clip)).eval().float().requires_grad_(False)
            self.processor = CLIPProcessor.from_pretrained(str(clip))
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # what transformers raises for absent or other files
            raise ValueError(f"{clip} could not be loaded as a CLIPModel with its processor: {error}") from error
        self.dimension = self.network.config.projection_dim
        self.title = f"{self.name}:{str(clip).rstrip('/').split('/')[-1]}"
        projection = self.network.visual_projection.weight.numpy().tobytes()
        self.identity = (
            f"{self.title}:{hashlib.sha256(projection).hexdigest()[:8]}"  # tells checkpoints of a name apart
        )
        self.preprocess = functools.partial(pixels, self.processor.image_processor)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return pooled(self.network.get_image_features(pixel_values=batch))

    def to(self, device: str) -> None:
        self.network.to(device)


def pooled(found: Any) -> torch.Tensor:
    """The projected features: transformers 5 returns them inside an output object, 4 as they are."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


EXTRACTORS.register(Clip.name, Clip)
