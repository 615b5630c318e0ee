"""The folder that a conversion writes: a diffusers DiTPipeline that is an adapter too, a recipe and a model card."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json, write_folder, write_json
from fastdit.methods.adapter import Adapter, describe_base
from fastdit.methods.adapter.folder import CARD, OWN
from fastdit.methods.adapter.writing import write_texts
from fastdit.methods.runtime import Host
from fastdit.models.base import family_of
from fastdit.pipelines.convert.base import Converted
from fastdit.pipelines.convert.card import model_card
from fastdit.pipelines.recipes import BESIDE_MODEL, Recipe

NO_CLASS = 1000  # the label that DiTPipeline's guidance takes for none, whatever the model


def check_out(out: Path) -> None:
    """ValueError for a folder in which something lies already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: give a new folder")


def write_pipeline(
    out: Path,
    converted: Converted,
    origin: str,
    guidance_channels: int | None,
    *,
    vae: Any,
    scheduler: Any,
    labels: dict[str, str] | None,
) -> Path:
    """Write the folder whole or not at all; `origin` is the name of the file that the weights came from."""
    import diffusers
    from safetensors.torch import save_file

    transformer = diffusers.DiTTransformer2DModel(**converted.geometry.config)
    transformer.load_state_dict(converted.state)
    method: Any = converted.method
    runtime: Any = method.bind(Host("transformer", transformer, family_of(transformer)))
    runtime.module.load_state_dict(converted.own_state)
    adapter = Adapter(
        out.resolve(), method.name, "routers", runtime.structure(), describe_base(transformer, out.resolve().name), 0
    )
    chosen = {} if guidance_channels is None else {"guidance_channels": guidance_channels}
    recipe = Recipe(
        (type(method).of(checkpoint=".", **chosen),),  # this folder, wherever it is
        call={} if converted.geometry.classes == NO_CLASS else {"guidance_scale": 1.0},
        note=f"converted from {origin}",
    )
    card = model_card(converted, origin, bool(vae), recipe.call)

    def write(folder: Path) -> None:
        with _quietly():
            diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler).save_pretrained(folder)
        if labels is not None:
            write_json(folder / "model_index.json", {**read_json(folder / "model_index.json"), "id2label": labels})
        save_file(runtime.module.state_dict(), folder / OWN)
        write_texts(adapter, folder, merged=True)
        (folder / CARD).write_text(card, encoding="utf-8")
        recipe.save(folder / BESIDE_MODEL)

    return write_folder(out, write)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without diffusers' warning of a VAE that is none, as that is meant."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
