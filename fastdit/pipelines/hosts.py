"""What of a pipeline is accelerated: its denoising transformers, and all models whose weights may be streamed."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastdit.methods.runtime import Host, Runtime
from fastdit.pipelines.counter import MacCounter


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoising transformers of a pipeline by component name; a bare transformer is its own only one."""
    if isinstance(pipe, nn.Module):
        return {"transformer": pipe}
    named = ((name, getattr(pipe, name, None)) for name in ("transformer", "transformer_2"))
    found = {name: module for name, module in named if module is not None}
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no transformer: fastdit accelerates diffusion transformers")
    return found


def models_of(target: Any) -> dict[str, nn.Module]:
    """Every model of a pipeline by component name."""
    found = transformers_of(target) if isinstance(target, nn.Module) else target.components
    return {name: getattr(part, "_orig_mod", part) for name, part in found.items() if isinstance(part, nn.Module)}


@dataclass
class Attached:
    """A transformer with its methods at work."""

    host: Host
    counter: MacCounter
    runtimes: list[Runtime]
