"""What streaming would hold and read within a budget, from a model's structure alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.config import BlockStreaming
from fastdit.methods.block_streaming.construct import empty
from fastdit.methods.block_streaming.division import divide
from fastdit.methods.block_streaming.residency import plan_residency
from fastdit.methods.runtime import PartForecast


def forecast(method: BlockStreaming, models: Mapping[str, nn.Module], dtype: torch.dtype) -> list[PartForecast]:
    """The plan for each model (on meta) in this dtype, as files of the same dtype would have it.

    ValueError with the smallest budget where one does not fit.
    """
    found = {label: empty(model, dtype) for label, model in models.items()}
    nowhere = {
        label: (model, {weight: Entry(Path(), 0, 0, weight.dtype, ()) for weight in model.parameters()})
        for label, model in found.items()
    }
    division, parts = divide(method, nowhere), []
    for label, (units, _) in division.parts.items():
        weights = sum(p.numel() * p.element_size() for p in found[label].parameters())
        sizes = [unit.nbytes for unit in units]
        if division.everything_fits:
            parts.append(PartForecast(label, weights, len(units), len(units), division.total, 0))
            continue
        plan = plan_residency(sizes, division.budget - division.fixed)
        read = sum(size for index, size in enumerate(sizes) if index not in plan.kept)
        parts.append(PartForecast(label, weights, len(units), len(plan.kept), division.fixed + plan.nbytes, read))
    return parts
