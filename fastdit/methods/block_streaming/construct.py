"""Building a model without its weights, and finding on disk what its own library would load into it."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdit.methods.block_streaming.checkpoint import Entry, read_entries
from fastdit.methods.block_streaming.units import placeholder


def model_class(library: str, name: str) -> type[nn.Module] | None:
    """The class of a component in model_index.json if its weights can be streamed, else None."""
    if library not in ("diffusers", "transformers"):
        return None
    cls = getattr(importlib.import_module(library), name, None)
    built_from_config = hasattr(cls, "config_class") or hasattr(cls, "from_config")
    return cls if isinstance(cls, type) and issubclass(cls, nn.Module) and built_from_config else None


def construct(
    cls: type[nn.Module], folder: Path, dtype: torch.dtype, variant: str | None = None
) -> tuple[nn.Module, dict[str, Entry]]:
    """A model with placeholders for weights in the dtypes that `cls.from_pretrained` gives, and its tensors on disk.

    ValueError for a quantised checkpoint, and for missing, truncated or foreign files.
    """
    refuse_quantised(folder)
    model = build(cls, folder.parent, folder.name, dtype)
    entries = _renamed(model, read_entries(folder, variant))
    if hasattr(model, "tie_weights"):
        model.tie_weights(missing_keys={name for name, _ in model.named_parameters()} - set(entries))
    return empty(model, dtype), _checked(model, entries, folder)


def build(cls: Any, path: str | Path, label: str, dtype: torch.dtype) -> Any:
    """A model from its config alone, parameters on meta; `path` is a pipeline's folder or Hub id, `label` the part."""
    if hasattr(cls, "config_class"):  # transformers
        config = cls.config_class.from_pretrained(path, subfolder=label)
        config.dtype = dtype
        return build_from(lambda: cls(config), dtype)
    config = cls.load_config(path, subfolder=label)
    model = build_from(lambda: cls.from_config(config), dtype)
    model.register_to_config(_name_or_path=str(Path(path) / label))
    return model


def build_from(make: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """What `make()` makes, its parameters on meta and its buffers real."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as both libraries do, for the buffers made beside the weights
    try:
        with init_empty_weights(include_buffers=False):
            return make()
    finally:
        torch.set_default_dtype(before)


def empty(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode with placeholders for its parameters, in the dtypes of its library's rules."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = dtype_of(model, f"{path}.{name}" if path else name, parameter.dtype, dtype)
                if parameter not in replaced:
                    replaced[parameter] = nn.Parameter(placeholder(parameter.shape, own, "cpu"), requires_grad=False)
                module._parameters[name] = replaced[parameter]
    return model.eval()


def refuse_quantised(folder: Path) -> None:
    """ValueError where a component's config tells of quantisation."""
    file = folder / "config.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("quantization_config"):
        raise ValueError(f"{folder.name} is quantised, and block streaming reads plain weights only: take another file")


def dtype_of(model: nn.Module, name: str, own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the model's library loads a parameter: some stay in fp32."""
    if not own.is_floating_point:
        return own
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or [])
    # transformers keeps these in fp32 against fp16 only, diffusers always
    if dtype == torch.float16 or not hasattr(model, "config_class"):
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or [])
    return torch.float32 if kept & set(name.split(".")) else dtype


def find_entries(model: nn.Module, folder: Path) -> dict[str, Entry]:
    """Where on disk each parameter and buffer of a model stands, by the model's names; ValueError if one is nowhere."""
    return _checked(model, _renamed(model, read_entries(folder)), folder)


def _checked(model: nn.Module, found: dict[str, Entry], folder: Path) -> dict[str, Entry]:
    names = {name.replace(".base_layer.", "."): name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name: name for name, _ in model.named_buffers()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    entries = {names[name]: entry for name, entry in found.items() if name in names}
    there = {parameters[name] for name in entries if name in parameters}
    for name, parameter in parameters.items():
        if parameter not in there and ".lora_" not in name:
            raise ValueError(f"{folder} holds no weights for {name}: is it the folder of this {type(model).__name__}?")
        if name in entries and entries[name].shape != tuple(parameter.shape):
            raise ValueError(
                f"{folder}: {name} has the shape {entries[name].shape}, the model wants {tuple(parameter.shape)}"
            )
    return entries


def _renamed(model: Any, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries under the names of today's model: both libraries rename old checkpoints while they load."""
    if not hasattr(model, "config_class"):
        model._fix_state_dict_keys_on_load(entries)
        return entries
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [item for item in get_model_conversion_mapping(model) if isinstance(item, WeightRenaming)]
    wanted = dict(model.state_dict())
    return {
        rename_source_key(name, renamings, [], model.base_model_prefix, wanted)[0]: entry
        for name, entry in entries.items()
    }
