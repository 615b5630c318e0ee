"""fastdit makes diffusion transformers fast. The public names are loaded when first used."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "FastDiTPipeline": "fastdit.pipelines",
    "accelerate": "fastdit.pipelines",
    "restore": "fastdit.pipelines",
    "Recipe": "fastdit.pipelines",
    "TokenMerging": "fastdit.methods.token_merging",
    "DyDiT": "fastdit.methods.dydit",
    "FlexDiT": "fastdit.methods.flexdit",
    "LinearProportionalLeap": "fastdit.methods.linear_proportional_leap",
    "RadialAttention": "fastdit.methods.radial_attention",
    "TemporalTokenMerging": "fastdit.methods.temporal_token_merging",
    "BlockStreaming": "fastdit.methods.block_streaming",
    "NothingAccelerated": "fastdit.core.errors",
}
__all__ = ["FastDiTPipeline", "NothingAccelerated", "Recipe", "accelerate", "restore"]
__all__ += ["BlockStreaming", "DyDiT", "FlexDiT", "LinearProportionalLeap", "RadialAttention", "TemporalTokenMerging"]
__all__ += ["TokenMerging"]

if TYPE_CHECKING:
    from fastdit.core.errors import NothingAccelerated
    from fastdit.methods.block_streaming import BlockStreaming
    from fastdit.methods.dydit import DyDiT
    from fastdit.methods.flexdit import FlexDiT
    from fastdit.methods.linear_proportional_leap import LinearProportionalLeap
    from fastdit.methods.radial_attention import RadialAttention
    from fastdit.methods.temporal_token_merging import TemporalTokenMerging
    from fastdit.methods.token_merging import TokenMerging
    from fastdit.pipelines import FastDiTPipeline, Recipe, accelerate, restore


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
