"""What is looked at before streamed weights are used or given back: other hooks, adapters, and free memory."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.division import size_text
from fastdit.methods.block_streaming.reading import Files

MOVING = ("group_offloading", "layerwise_casting")  # hooks of diffusers that move or cast weights


def check_placement(label: str, module: nn.Module) -> None:
    """RuntimeError where another kind of offloading or casting handles the weights of a streamed model as well."""
    registries = [getattr(child, "_diffusers_hook", None) for child in module.modules()]
    moving = any(registry is not None and registry.get_hook(name) for registry in registries for name in MOVING)
    if getattr(module, "_hf_hook", None) is not None or moving:
        raise RuntimeError(f"{label} is streamed from disk already: remove the other offloading or casting")


def check_adapters(label: str, module: nn.Module, absent: Collection[Tensor]) -> None:
    """RuntimeError for an adapter that was made from placeholders, as DoRA and PiSSA read the weights they adapt."""
    for name, parameter in module.named_parameters():
        if ".lora_" in name and parameter not in absent and not torch.isfinite(parameter).all():
            raise RuntimeError(
                f"{label}.{name} is not finite: this kind of adapter reads the weights when it is made, and they are "
                "on disk; use a plain LoRA, or load without BlockStreaming"
            )


def whole(tensors: Iterable[tuple[nn.Parameter, Entry]], files: Files) -> list[Tensor]:
    """The weights of parameters from disk, on the CPU, in the parameters' dtypes."""
    values = []
    for parameter, entry in tensors:
        value = torch.empty(parameter.shape, dtype=parameter.dtype)
        files.read([(entry, value)])
        values.append(value)
    return values


def memory_needed(models: Mapping[str, nn.Module], devices: Iterable[torch.device]) -> str:
    """A text that says how much memory is missing to hold these models whole, or "" where they fit."""
    import psutil

    size = sum(p.numel() * p.element_size() for model in models.values() for p in model.parameters())
    free = psutil.virtual_memory().available
    for device in devices:
        if device.type == "cuda":
            free = min(free, torch.cuda.mem_get_info(device)[0])
    if size <= free:
        return ""
    return f"without streaming this model needs {size_text(size)} of memory, and {size_text(free)} are free"
