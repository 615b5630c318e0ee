"""How a pipeline's weights are divided: read by rows, kept always, or cut into units within one budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.reading import STAGE
from fastdit.methods.block_streaming.rows import large_embeddings
from fastdit.methods.block_streaming.units import Unit, cut
from fastdit.models.base import family_of

Weights = Mapping[nn.Parameter, Entry]


@dataclass
class Division:
    """`parts` are each model's units and what belongs to none of them; `fixed` bytes are in memory whatever runs."""

    total: int
    budget: int
    parts: dict[str, tuple[list[Unit], Unit]]
    tables: list[tuple[Any, Entry]]  # embeddings that are read by rows
    fixed: int

    @property
    def everything_fits(self) -> bool:
        return self.total <= self.budget


def divide(method: BlockStreaming, models: Mapping[str, tuple[nn.Module, Weights]]) -> Division:
    """The division of models and their tensors on disk; large tables go by rows unless the budget holds everything.

    ValueError with the smallest budget that works where this one does not.
    """
    whole = {label: cut(module, found, called_alone(module)) for label, (module, found) in models.items()}
    casts = [e.nbytes for _, found in models.values() for p, e in found.items() if e.dtype != p.dtype]
    stage = min(STAGE, max(casts, default=0))
    total = stage + sum(core.nbytes + sum(unit.nbytes for unit in units) for units, core in whole.values())
    budget = method.budget(total)
    if total <= budget:
        return Division(total, budget, whole, [], total)
    tables, parts = [], {}
    for label, (module, found) in models.items():
        large = [(embedding, weight) for embedding, weight in large_embeddings(module) if weight in found]
        tables += [(embedding, found[weight]) for embedding, weight in large]
        by_rows = {weight for _, weight in large}
        rest = {weight: entry for weight, entry in found.items() if weight not in by_rows}
        parts[label] = cut(module, rest, called_alone(module))
    rows = min(STAGE, max((table.weight.numel() * table.weight.element_size() for table, _ in tables), default=0))
    fixed = stage + rows + sum(core.nbytes for _, core in parts.values())
    _check(method, budget, fixed, parts)
    return Division(total, budget, parts, tables, fixed)


def _check(method: BlockStreaming, budget: int, fixed: int, parts: dict[str, tuple[list[Unit], Unit]]) -> None:
    sizes = [(unit.nbytes, f"{label}.{unit.name}") for label, (units, _) in parts.items() for unit in units]
    largest, name = max(sizes, default=(0, "none"))
    if fixed + largest > budget:
        raise ValueError(
            f"memory_budget {method.memory_budget} is {size_text(budget)}, and the largest block ({name}, "
            f"{size_text(largest)}) does not fit beside what always stays ({size_text(fixed)}): memory_budget="
            f"{-(-(fixed + largest) // 1024)}KiB is the smallest that works, {-(-(fixed + 2 * largest) // 1024)}KiB "
            "the smallest that reads while it computes"
        )


def called_alone(module: nn.Module) -> tuple[str, ...]:
    """What a transformer's family tells; text encoders and VAEs have none."""
    try:
        return family_of(module).called_alone
    except ValueError:
        return ()


def size_text(size: int) -> str:
    """1_610_612_736 -> '1.50 GiB'."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
