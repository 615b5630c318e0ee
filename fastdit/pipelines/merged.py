"""The merged pipeline: a diffusers folder with a trained method's weights in place, that loads in one line."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from fastdit.core.files import read_json, write_folder, write_json
from fastdit.methods.adapter import Adapter, check_replaceable, describe_base
from fastdit.methods.adapter.folder import FILES, LORA, OWN
from fastdit.methods.adapter.writing import write_texts
from fastdit.methods.trained import TrainedMethod
from fastdit.pipelines.fast_pipeline import FastDiTPipeline
from fastdit.pipelines.hosts import transformers_of
from fastdit.pipelines.recipes import BESIDE_MODEL, Recipe


def save_merged(pipe: Any, folder: str | Path) -> Path:
    """Write a pipeline with a trained method as one folder: `FastDiTPipeline.from_pretrained(folder)` has it at work.

    The transformer is saved as it is now, with the weights that a "full" adapter brought; the method's own parameters
    lie beside it as an adapter, and fastdit.json names the methods. Written whole or not at all; an older merged folder
    is replaced, any other refused.
    """
    folder = Path(folder)
    method, adapter = _trained(pipe)
    check_replaceable(folder, _entries(folder))

    def write(temporary: Path) -> None:
        super(FastDiTPipeline, pipe).save_pretrained(temporary)  # diffusers' own, which warns of nothing
        kind = "routers" if adapter.kind == "full" else adapter.kind
        for name in (OWN, LORA) if kind == "lora" else (OWN,):
            shutil.copyfile(adapter.folder / name, temporary / name)
        base = describe_base(next(iter(transformers_of(pipe).values())), source=folder.resolve().name)
        here = dataclasses.replace(adapter, folder=folder.resolve(), kind=kind, base=base)
        write_texts(here, temporary, merged=True)
        recipe = Recipe(tuple(pipe.methods), pipe.call_defaults, f"{method.name} on weights trained for it").to_dict()
        recipe["methods"][pipe.methods.index(method)]["checkpoint"] = "."  # this folder, wherever it is
        write_json(temporary / BESIDE_MODEL, recipe)

    return write_folder(folder, write)


def _trained(pipe: Any) -> tuple[TrainedMethod, Adapter]:
    """The trained method at work on a pipeline, and its adapter; ValueError where there is none."""
    for method in getattr(pipe, "methods", ()):
        if isinstance(method, TrainedMethod) and (adapter := method.adapter()) is not None:
            return method, adapter
    raise ValueError("save_merged needs a FastDiTPipeline with a trained method at work, one with a checkpoint")


def _entries(folder: Path) -> tuple[str, ...]:
    """What a merged folder consists of, by its own index of parts."""
    index = folder / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    return (*FILES, index.name, BESIDE_MODEL, *parts)
