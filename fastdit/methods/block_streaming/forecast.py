"""What streaming would hold and read within a budget, from a model's structure alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.component import called_alone
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.construct import empty
from fastdit.methods.block_streaming.residency import plan_residency, smallest_budget
from fastdit.methods.block_streaming.rows import large_embeddings
from fastdit.methods.block_streaming.units import cut
from fastdit.methods.runtime import PartForecast


def forecast(method: BlockStreaming, models: Mapping[str, nn.Module], dtype: torch.dtype) -> list[PartForecast]:
    """The plan for each model (on meta) in this dtype; ValueError with the smallest budget where one does not fit."""
    found = {label: empty(model, dtype) for label, model in models.items()}
    sizes = {label: _nbytes(model) for label, model in found.items()}
    budget = method.budget(sum(sizes.values()))
    cuts, fixed = {}, 0
    for label, model in found.items():
        by_rows = {weight for _, weight in large_embeddings(model, budget)}
        nowhere = Entry(Path(), 0, 0, dtype, ())
        entries = {parameter: nowhere for parameter in model.parameters() if parameter not in by_rows}
        cuts[label], core = cut(model, entries, called_alone(model))
        fixed += core.nbytes
    parts = []
    for label, units in cuts.items():
        each = [unit.nbytes for unit in units]
        least = fixed + smallest_budget(each)
        if least > budget:
            raise ValueError(f"memory_budget {method.memory_budget} is too small for {label}: it needs {least} bytes")
        plan = plan_residency(each, budget - fixed)
        read = sum(size for index, size in enumerate(each) if index not in plan.kept)
        parts.append(PartForecast(label, sizes[label], len(units), len(plan.kept), fixed + plan.nbytes, read))
    return parts


def _nbytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
