"""Small sets for tests of distances: crops of real photographs, run folders, a network of three lines, a tiny CLIP."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastdit.evaluation.features.base import Extractor, Resize
from fastdit.evaluation.manifest import Record, Writer, open_run

PHOTOS = {
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/motorcycle_left.png"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}


@functools.cache
def photos() -> list[np.ndarray]:
    """Photographs that the wheels of scikit-image and scikit-learn carry, uint8 (H, W, 3)."""
    found = []
    for package, files in PHOTOS.items():
        folder = Path(importlib.util.find_spec(package).origin).parent
        found += [np.asarray(Image.open(folder / file).convert("RGB")) for file in files]
    return found


def crops(count: int, seed: int, side: int = 96) -> list[np.ndarray]:
    """Random crops (side, side, 3), the photographs taking turns."""
    rng, made = np.random.default_rng(seed), []
    for index in range(count):
        photo = photos()[index % len(photos())]
        y, x = (rng.integers(size - side) for size in photo.shape[:2])
        made.append(photo[y : y + side, x : x + side])
    return made


def save(folder: Path, pictures) -> Path:
    """A bare folder of PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
    return folder


def save_run(folder: Path, pictures, prompts, videos: bool = False) -> Path:
    """A run's folder as `fastdit eval generate` writes it: pictures (H, W, 3), or with `videos` frames (T, H, W, 3)."""
    digest = open_run(folder, folder.name, {"model": "test"}, {})
    writer = Writer(folder, 0)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        file = f"samples/{index:06d}.{'npy' if videos else 'png'}"
        if videos:
            np.save(folder / file, picture)
        else:
            Image.fromarray(picture).save(folder / file)
        writer.append(Record(index, file, prompt, index, digest, 0.1, 1, 1, 0))
    writer.close()
    return folder


class Coarse(Extractor):
    """The picture itself at 4 x 4: a network for tests that are not about networks."""

    name = title = identity = "coarse"
    dimension = 48
    preprocess = Resize(4)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float() / 255

    def to(self, device: str) -> None:
        pass


def tiny_clip(folder: Path) -> Path:
    """A CLIP checkpoint of random weights with tokenizer and processor, 77 tokens, 8 features."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    side = {"height": 32, "width": 32}
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side), tokenizer)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(words), "max_position_embeddings": 77},
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
