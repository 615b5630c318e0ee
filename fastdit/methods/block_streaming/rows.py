"""Large embeddings, read row by row: a prompt needs a few hundred of a table's quarter of a million rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.methods.block_streaming.checkpoint import Entry
from fastdit.methods.block_streaming.reading import STAGE, Files

LARGE = 64 << 20  # bytes of a table from which on it is read by rows


def readable_by_rows(module: nn.Module) -> bool:
    """Whether an embedding's forward is nothing but a look-up."""
    return type(module) is nn.Embedding and module.max_norm is None


def large_embeddings(module: nn.Module) -> list[tuple[Any, nn.Parameter]]:
    """(embedding, weight) of the large tables, but those whose weight something else than a look-up uses as well."""
    owners: dict[nn.Parameter, list[Any]] = {}
    for child in module.modules():
        for parameter in child._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(child)
    return [
        (owner, weight)
        for weight, found in owners.items()
        if weight.numel() * weight.element_size() > LARGE and all(map(readable_by_rows, found))
        for owner in found
    ]


class RowEmbedding:
    """Stands for `forward` of an embedding: reads the rows that the ids ask for, a stage full at a time."""

    def __init__(self, module: nn.Module, entry: Entry, files: Callable[[], Files]) -> None:
        self.module, self.entry, self.files = module, entry, files

    def __call__(self, input: Tensor) -> Tensor:
        weight: Any = self.module.weight
        count, width = self.entry.shape
        if input.numel() and not 0 <= int(input.min()) <= int(input.max()) < count:
            raise IndexError(f"token ids must lie in 0 to {count - 1}, got {int(input.min())} to {int(input.max())}")
        ids, places = input.cpu().unique(return_inverse=True)
        out = torch.empty(*input.shape, width, dtype=weight.dtype)
        step = max(1, STAGE // (width * weight.element_size()))
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            rows = torch.empty(len(part), width, dtype=weight.dtype)
            self.files().rows(self.entry, part.tolist(), rows)
            here = (places >= start) & (places < start + len(part))
            out[here] = rows[places[here] - start]
        return out.to(input.device)
