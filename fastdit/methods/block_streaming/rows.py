"""Large embeddings, read row by row: a prompt needs a few hundred of a table's quarter of a million rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.reading import Files

PART = 8  # an embedding of more than this part of the budget is read row by row


def readable_by_rows(module: nn.Module) -> bool:
    """Whether an embedding's forward is nothing but a look-up."""
    return type(module) is nn.Embedding and module.max_norm is None


def large_embeddings(module: nn.Module, budget: int) -> list[tuple[Any, nn.Parameter]]:
    """(embedding, weight) of those too large to keep in a budget, and so read by rows.

    Not those whose weight something else than a look-up uses as well.
    """
    owners: dict[nn.Parameter, list[Any]] = {}
    for child in module.modules():
        for parameter in child._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(child)
    return [
        (owner, weight)
        for weight, found in owners.items()
        if weight.numel() * weight.element_size() * PART > budget and all(map(readable_by_rows, found))
        for owner in found
    ]


class RowEmbedding:
    """Stands for `forward` of an embedding: reads the rows that the ids ask for, and looks them up."""

    def __init__(self, module: nn.Module, entry: Entry, files: Files, report: Callable[[int], Any]) -> None:
        self.module, self.entry, self.files, self.report = module, entry, files, report

    def __call__(self, input: Tensor) -> Tensor:
        ids, places = input.unique(return_inverse=True)
        weight: Any = self.module.weight
        rows = torch.empty(len(ids), *self.entry.shape[1:], dtype=weight.dtype)
        self.report(rows.nbytes)
        self.files.rows(self.entry, ids.tolist(), rows)
        return F.embedding(places, rows.to(input.device))
