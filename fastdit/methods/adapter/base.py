"""What an adapter says of the transformer it was made for, and whether it fits the one at hand."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdit.core.weights import plain_name, weights_hash
from fastdit.methods.adapter.folder import LORA, Adapter
from fastdit.methods.adapter.host_weights import check_in_memory, mismatch
from fastdit.zoo import name_of

# what of a transformer's config its weights do not hang on
_FREE = {"sample_size", "video_length", "interpolation_scale", "rope_max_seq_len", "dropout", "upcast_attention"}


def describe_base(transformer: nn.Module, source: str | None = None) -> dict[str, Any]:
    """What an adapter says of the transformer it is made for; before training changes the weights."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    return {
        "class": type(transformer).__name__,
        "config": _config(transformer),
        "hash": weights_hash(transformer),
        "source": source or _source(transformer),
    }


def check_adapter(adapter: Adapter, method_name: str, transformer: nn.Module) -> None:
    """ValueError where an adapter is of another method or for another transformer; a warning for other weights."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    where, base = f"adapter {adapter.folder}", adapter.base
    if adapter.method != method_name:
        raise ValueError(f"{where} holds {adapter.method}, not {method_name}: give it to {adapter.method}")
    if (found := type(transformer).__name__) != base["class"]:
        raise ValueError(f"{where} is for {base['class']}, and this transformer is {found}: load the base it is for")
    here = _config(transformer)
    for name, value in base["config"].items():
        if name in here and here[name] != value:
            raise ValueError(f"{where} is for a transformer with {name} {value}, and this one has {here[name]}")
    if adapter.kind == "full":
        check_in_memory(transformer, f"the weights of {where} cannot be brought in")
        if fault := mismatch(adapter.host_shapes(), {k: tuple(v.shape) for k, v in transformer.state_dict().items()}):
            raise ValueError(f"{where} does not fit {found}: {fault}")
        return
    _check_factors(adapter, transformer)
    if base.get("hash") and _comparable(transformer) and (now := weights_hash(transformer)) != base["hash"]:
        source = f" of {base['source']}" if base.get("source") else ""
        warnings.warn(
            f"{adapter.method}: {where} was trained on weights{source} that are not these (hash {base['hash'][:12]}, "
            f"here {now[:12]}): load the base it was trained on, or train it on this one",
            stacklevel=2,
        )


def _check_factors(adapter: Adapter, transformer: nn.Module) -> None:
    """ValueError where a low-rank change does not fit a linear layer of the transformer."""
    modules = {plain_name(name): module for name, module in transformer.named_modules()}
    for name, value in adapter.lora_state().items():
        path, _, part = name.rpartition(".")
        if path == "mixer":
            continue
        side = {"down": "in_features", "up": "out_features"}.get(part, "")
        expected = getattr(modules.get(path), side, None)
        if expected is None:
            raise ValueError(f"adapter {adapter.folder}: {LORA} changes {path}, which is no linear layer here")
        if value.shape[1] != expected:
            raise ValueError(
                f"adapter {adapter.folder}: {name} is for {side} {value.shape[1]}, and the layer has {expected}"
            )


def _comparable(transformer: nn.Module) -> bool:
    """Whether a hash tells anything: not for rounded weights, nor where the weights are elsewhere."""
    return all(p.dtype in (torch.float32, torch.bfloat16) and not p.is_meta for p in transformer.parameters())


def _config(transformer: nn.Module) -> dict[str, Any]:
    """What the shapes and the arithmetic of a transformer hang on; JSON-ready."""
    config = dict(getattr(transformer, "config", {}))
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in _FREE}
    return json.loads(json.dumps(kept, default=str))


def _source(transformer: nn.Module) -> str | None:
    """Where a transformer came from: a Hub id, a bundled name, or a folder's own name without the path to it."""
    text = dict(getattr(transformer, "config", {})).get("_name_or_path")
    if not text:
        return None
    path = Path(text)
    for part in path.parts:
        if part.startswith("models--"):  # the Hub's cache
            return part.removeprefix("models--").replace("--", "/")
    if not path.is_dir():
        return str(text)
    path = path.resolve()
    folder = path.parent if (path.parent / "model_index.json").is_file() else path
    return name_of(folder) or folder.name
