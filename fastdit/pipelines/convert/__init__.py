"""Published checkpoints become diffusers folders with our adapter beside, as `fastdit convert` writes them."""

from pathlib import Path
from typing import Any

from fastdit.core.registry import discover
from fastdit.pipelines.convert.base import CONVERTERS, Converted, Converter, check_kind
from fastdit.pipelines.convert.card import summary
from fastdit.pipelines.convert.source import Source

__all__ = ["CONVERTERS", "Converted", "Converter", "convert", "read_checkpoint", "summary"]


def read_checkpoint(name: str, path: str | Path, num_heads: int | None = None, **options: Any) -> Converted:
    """The checkpoint of method `name` in a file, every tensor of it checked; ValueError says what is wrong with it."""
    discover(__name__)
    converter = CONVERTERS[name]
    source = Source.open(Path(path))
    check_kind(source, converter)
    converted = converter.read(source, num_heads, **options)
    source.finish(converter.title)
    return converted


def convert(
    name: str,
    path: str | Path,
    out: str | Path,
    *,
    num_heads: int | None = None,
    vae: str | None = None,
    scheduler: str | None = None,
    labels: str | Path | None = None,
    guidance_channels: int | None = None,
    **options: Any,
) -> Converted:
    """Write a published checkpoint as the folder `out`, whole or not at all, for FastDiTPipeline.from_pretrained(out).

    `vae` and `scheduler` are ids or folders; without them the folder has no VAE, and DDIM on DiT's training schedule.
    `labels` is a text file with the names of one class a line. ValueError, before anything is written, names what is
    wrong.
    """
    from fastdit.pipelines.convert.folder import check_out, write_pipeline
    from fastdit.pipelines.convert.parts import read_labels, read_scheduler, read_vae

    out = Path(out)
    check_out(out)
    converted = read_checkpoint(name, path, num_heads, **options)
    geometry = converted.geometry
    parts = {
        "labels": read_labels(labels, geometry.classes),
        "scheduler": read_scheduler(scheduler),
        "vae": read_vae(vae, geometry.in_channels),
    }
    write_pipeline(out, converted, Path(path).name, guidance_channels, **parts)
    return converted
