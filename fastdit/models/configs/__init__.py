"""Transformer configs that ship for `fastdit profile`: what differs from the class defaults, and the usual geometry."""

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """A config: `class`, `config`, `vae_scale`, `frame_scale`, usual `height`, `width`, `num_frames`, `steps`."""
    return json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))
