"""What to generate: prompts or class labels from a file, how many, which seeds; and the field's protocols by name."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json
from fastdit.core.registry import Registry
from fastdit.evaluation.manifest import Item


@dataclass(frozen=True)
class Protocol:
    """A way of the field to draw samples. The seed of sample i is always the first seed + i."""

    name: str
    num: int
    batch: int
    classes: int | None  # class-conditional: labels 0 to classes - 1 in turn; None: prompts from the user's file
    note: str


PROTOCOLS: Registry[Protocol] = Registry("protocol")
PROTOCOLS.register(
    "imagenet-50k",
    Protocol("imagenet-50k", 50_000, 32, 1000, "50 pictures of each of 1,000 classes, as ADM's FID-50K; the reference "
             "is VIRTUAL_imagenet256_labeled.npz of openai/guided-diffusion"),
)  # fmt: skip
PROTOCOLS.register(
    "coco-30k",
    Protocol("coco-30k", 30_000, 16, None, "30,000 captions of COCO val2014, one a picture, drawn with seed 0; the "
             "reference is the folder of those pictures"),
)  # fmt: skip


def items_of(
    texts: Sequence[str], num: int | None = None, seed: int = 0, seeds: Sequence[int] | None = None
) -> list[Item]:
    """`num` items (default: one a text) that go round the texts; item i has seed + i, or its own of `seeds`."""
    if not texts:
        raise ValueError("the list of prompts is empty")
    num = len(texts) if num is None else num
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    # a text that comes round again keeps its own seed's distance: no two items of one text share a seed
    given = [seed + i if seeds is None else seeds[i % len(texts)] + i // len(texts) for i in range(num)]
    return [Item(i, texts[i % len(texts)], given[i]) for i in range(num)]


def class_items(classes: int, num: int, seed: int = 0) -> list[Item]:
    """`num` items whose labels go round 0 to classes - 1; the prompt is the label's number."""
    return [Item(i, str(i % classes), seed + i, label=i % classes) for i in range(num)]


def read_prompts(path: Path) -> tuple[list[str], list[int] | None]:
    """Texts of a file and their own seeds, if it gives them.

    .txt: one a line (empty lines are left out). .json: a list of texts or of {"prompt": ..., "seed": ...}, or COCO's
    captions (`annotations`). .jsonl: one such object a line. ValueError names the file and the line.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        return _from_objects(path, read_json(path))
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a file of prompts, one a line")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file ({error}): prompts are read from .txt, .json or .jsonl") from error
    if not lines:
        raise ValueError(f"{path} holds no prompts")
    if kind != ".jsonl":
        return [line.strip() for line in lines], None
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
    return _from_objects(path, objects)


def _from_objects(path: Path, data: Any) -> tuple[list[str], list[int] | None]:
    if isinstance(data, dict) and "annotations" in data:
        return coco_captions(path, data["annotations"]), None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} holds no prompts: a list of texts, or of objects with prompt and seed, is expected")
    objects: list[Any] = [{"prompt": entry} if isinstance(entry, str) else entry for entry in data]
    for number, entry in enumerate(objects, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f"{path}, entry {number} has no text `prompt`")
        if not isinstance(entry.get("seed", 0), int):
            raise ValueError(f"{path}, entry {number}: seed {entry['seed']!r} is no whole number")
    seeded = [entry["seed"] for entry in objects if "seed" in entry]
    if seeded and len(seeded) < len(objects):
        raise ValueError(f"{path}: {len(seeded)} of {len(objects)} entries have a seed; give it to all or to none")
    if len({(entry["prompt"], entry["seed"]) for entry in objects if seeded}) < len(seeded):
        raise ValueError(f"{path}: two entries have the same prompt and seed, and so are one sample: remove one")
    return [entry["prompt"] for entry in objects], seeded or None


def coco_captions(path: Path, annotations: Any) -> list[str]:
    """One caption a picture (the one with the lowest id), the pictures in an order drawn with seed 0."""
    first: dict[int, str] = {}
    try:
        for entry in sorted(annotations, key=lambda entry: entry["id"]):
            first.setdefault(entry["image_id"], " ".join(entry["caption"].split()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: `annotations` are not COCO's captions ({error!r})") from error
    order = sorted(first)
    random.Random(0).shuffle(order)
    return [first[image] for image in order]
