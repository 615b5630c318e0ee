"""Opening a pipeline for streaming: models without weights from a folder, or models that are in memory already."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.construct import construct, find_entries, model_class, refuse_quantised
from fastdit.methods.block_streaming.method import Sources, StreamedWeights
from fastdit.methods.block_streaming.reading import Files
from fastdit.methods.block_streaming.state import check_placement

REFUSED = {
    "device_map": "it places weights itself; give the device by pipe.to(...)",
    "quantization_config": "quantised weights cannot be read in parts as they are",
    "offload_folder": "it is another offloading to disk, with a second copy",
}


def open_pipeline(method: BlockStreaming, folder: Path, options: dict[str, Any]) -> StreamedWeights:
    """All models of a diffusers folder whose weights can be streamed, built without them.

    `options` are those of `from_pretrained`: `dtype`, `variant`; models given there stay as they are. ValueError for
    options that place or change weights, quantised checkpoints, and missing, truncated or foreign files.
    """
    for name, reason in REFUSED.items():
        if options.get(name) is not None:
            raise ValueError(f"block_streaming does not go with {name}: {reason}")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    sources: Sources = {}
    for label, entry in index.items():
        if label in options or not isinstance(entry, list) or None in entry:
            continue
        cls = model_class(*entry)
        if cls is not None:
            part = folder / label
            model, found = construct(cls, part, _dtype(options, label), options.get("variant"))
            sources[label] = model, part, by_parameter(model, found)
            _load_buffers(model, found)
    return StreamedWeights(method, sources)


def adopt(method: BlockStreaming, parts: dict[str, nn.Module]) -> StreamedWeights:
    """Stream models that are in memory from `method.source`, which must hold exactly their weights."""
    if method.source is None:
        raise ValueError(
            "block_streaming acts while a model is loaded, and this one is in memory already: give it to "
            "FastDiTPipeline.from_pretrained(...), or name the folder of these weights by source="
        )
    source = Path(method.source).expanduser()
    sources: Sources = {}
    if not source.is_dir():
        raise ValueError(f"source {method.source} is no folder: give the folder that the model was loaded from")
    whole = (source / "model_index.json").is_file()
    for label, module in parts.items():
        part = source / label if whole else source
        if not part.is_dir():
            continue
        check_placement(label, module)
        refuse_quantised(part)
        found = find_entries(module, part)
        _compare(label, module, found)
        sources[label] = module, part, by_parameter(module, found)
    if not sources:
        raise ValueError(f"source {source} holds none of {', '.join(parts)}: give the folder of these weights")
    return StreamedWeights(method, sources)


def by_parameter(module: nn.Module, found: dict[str, Entry]) -> dict[nn.Parameter, Entry]:
    """Entries by the parameter object itself, which stays the same when adapters rename it."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {parameters[name]: entry for name, entry in found.items() if name in parameters}


def _dtype(options: dict[str, Any], label: str) -> torch.dtype:
    """The dtype of one component, as diffusers reads its option: one for all, or a dict with a default."""
    dtype = options.get("dtype") or options.get("torch_dtype") or torch.float32
    if isinstance(dtype, dict):
        dtype = dtype.get(label, dtype.get("default", torch.float32))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype such as torch.bfloat16 for streamed weights, got {dtype!r}")
    return dtype


def _load_buffers(model: nn.Module, found: dict[str, Entry]) -> None:
    """Buffers that a checkpoint holds are small, and stay in memory."""
    files, buffers = Files(), dict(model.named_buffers())
    wanted = [(entry, buffers[name]) for name, entry in found.items() if name in buffers]
    files.read(wanted)
    files.close()


def _compare(label: str, module: nn.Module, found: dict[str, Entry]) -> None:
    """ValueError unless the files hold the very weights of a model."""
    files, parameters = Files(), dict(module.named_parameters(remove_duplicate=False))
    try:
        for name, entry in found.items():
            if name in parameters:
                mine = parameters[name]
                theirs = torch.empty(entry.shape, dtype=mine.dtype)
                files.read([(entry, theirs)])
                if not torch.equal(theirs, mine.detach().cpu()):
                    raise ValueError(
                        f"source holds other weights than this {label} has in memory ({name}): it would not come back "
                        "as it is; save the model first and name that folder"
                    )
    finally:
        files.close()
