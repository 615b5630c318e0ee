"""BlockStreaming: run a model that does not fit in memory, its weights read from disk block by block."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdit.methods.base import Method, Stage, option, register_method
from fastdit.methods.runtime import PartForecast, Weights

UNITS = {"": 1, "B": 1} | {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}
UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


@register_method
@dataclass(frozen=True)
class BlockStreaming(Method):
    """Keep the weights in the checkpoint's own files and read each block while the one before it computes.

    Source: concurrent inference and dynamic loading of On-device Sora (Kim et al., 2025, arXiv 2502.04363). Output is
    bit-exact. It acts while a model is loaded, so it is given to `from_pretrained`; on a pipeline that is in memory
    already it needs `source`. For inference only.
    """

    name = "block_streaming"
    summary = "weights stay on disk and are read block by block, within a memory budget; bit-exact"

    memory_budget: str | int = option(
        "4GiB", "weights in memory at once: 4GiB, 500MB, bytes, or a share of the model's such as 25%; activations and "
        "the interpreter come on top"
    )  # fmt: skip
    source: str | None = option(None, "folder of the weights, for a pipeline that is loaded already")
    drop_cache: bool = option(
        True,
        "keep what was read out of the system's cache; false: read through it, for slow disks and much free memory",
    )

    def __post_init__(self) -> None:
        if isinstance(self.source, Path):
            object.__setattr__(self, "source", str(self.source))
        if self.source is not None and not isinstance(self.source, str):
            raise ValueError(f"source must be the path of a folder, got {self.source!r}")
        if not isinstance(self.drop_cache, bool):
            raise ValueError(f"drop_cache must be true or false, got {self.drop_cache!r}")
        self.budget(100)

    def budget(self, total: int) -> int:
        """The budget in bytes for a model of `total` bytes; ValueError shows the forms."""
        text = str(self.memory_budget).strip().replace(" ", "")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?i?B|%|)", text, re.IGNORECASE)
        if match is None or isinstance(self.memory_budget, (bool, float)):
            raise ValueError(f"memory_budget must be like 4GiB, 500MB, 25% or a number of bytes, got {text!r}")
        number, unit = float(match[1]), match[2]
        if unit == "%":
            if not 0 < number <= 100:
                raise ValueError(f"memory_budget as a share must lie in (0, 100] %, got {text}")
            return int(total * number / 100)
        known = {name.lower(): size for name, size in UNITS.items()}
        if number <= 0:
            raise ValueError(f"memory_budget must be above 0, got {text}: try 4GiB")
        return int(number * known[unit.lower()])

    @property
    def stage(self) -> Stage:
        return "load"

    @property
    def neutral(self) -> bool:
        """Where the budget holds the whole model all weights stay; the method alone cannot know."""
        return str(self.memory_budget).strip() == "100%"

    def clash(self, other: Method) -> str | None:
        return "one BlockStreaming at a time: it streams every part of the pipeline" if other.stage == "load" else None

    def open(self, folder: Path, options: dict[str, Any]) -> Weights:
        from fastdit.methods.block_streaming.opening import open_pipeline

        return open_pipeline(self, folder, options)

    def forecast(self, models: dict[str, Any], dtype: Any) -> list[PartForecast]:
        from fastdit.methods.block_streaming.forecast import forecast

        return forecast(self, models, dtype)

    def adopt(self, models: dict[str, Any]) -> Weights:
        from fastdit.methods.block_streaming.opening import adopt

        return adopt(self, models)
