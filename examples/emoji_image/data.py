"""Build the training pictures: Google's Noto emoji at 64x64 on white, with their names as captions.

`python data.py` fetches the npm package emoji-datasource-google 16.0.0 (data MIT, pictures Apache-2.0) with `npm pack`
and writes emoji64.npz: `x` uint8 (N, 64, 64, 3) and `c`, the lower-case caption of each picture.
"""

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
PROMPTS = Path(__file__).resolve().parents[2] / "fastdit" / "zoo" / "emoji_image" / "prompts.txt"


def build(output: Path) -> None:
    """Write the data set to `output` from the npm package; pictures whose file is missing are left out."""
    with tempfile.TemporaryDirectory() as folder:
        name = subprocess.run(
            ["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(Path(folder, name)) as archive:
            archive.extractall(folder, filter="data")
        root = Path(folder, "package")
        pictures, captions, categories = [], [], []
        for entry in json.loads((root / "emoji.json").read_text()):
            file = root / "img" / "google" / "64" / entry["image"]
            if not file.exists():
                continue
            picture = Image.open(file).convert("RGBA")
            canvas = Image.new("RGBA", picture.size, "white")
            pictures.append(np.asarray(Image.alpha_composite(canvas, picture).convert("RGB")))
            captions.append(entry["name"].lower())
            categories.append(entry["category"])
    np.savez_compressed(output, x=np.stack(pictures), c=np.array(captions), cat=np.array(categories))


def load(path: Path) -> tuple[np.ndarray, list[str]]:
    """All pictures (N, 64, 64, 3) uint8 and their captions; built from the npm package where `path` is absent."""
    if not path.exists():
        build(path)
    with np.load(path, allow_pickle=False) as data:
        return data["x"], [str(caption) for caption in data["c"]]


def prompts() -> list[str]:
    """The captions that the model is trained on, in the order that `fastdit models --prompts` shows."""
    return PROMPTS.read_text(encoding="utf-8").split("\n")[:-1]


def chosen(path: Path) -> tuple[np.ndarray, list[str]]:
    """The pictures of the trained captions only, in the order of `prompts()`."""
    pictures, captions = load(path)
    return pictures[[captions.index(prompt) for prompt in prompts()]], prompts()


if __name__ == "__main__":
    build(Path("emoji64.npz"))
