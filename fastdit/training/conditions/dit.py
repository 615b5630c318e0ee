"""DiT: ImageNet classes; the class after the last stands for none."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding

from fastdit.core.ledger import PatchLedger
from fastdit.training.conditions.base import (
    Conditions,
    Geometry,
    Rows,
    register_conditions,
    scaled,
    transformer_of,
)


def _encode(pipe: Any, labels: Sequence[int]) -> Rows:
    return {"class_labels": torch.tensor(labels, dtype=torch.long)}


def _ready(transformer: Any, ledger: PatchLedger) -> None:
    """No label dropout of its own: each block would draw anew, from the global generator."""
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            ledger.set_attribute(module, "dropout_prob", 0.0)


def _arguments(transformer: Any, rows: Rows, geometry: Geometry, guidance: float) -> dict[str, Any]:
    return dict(rows)


DIT = register_conditions(
    Conditions(
        family="dit",
        told="labels",
        encode=_encode,
        arguments=_arguments,
        latents=scaled,
        models=(),
        ready=_ready,
        nothing=lambda pipe: transformer_of(pipe).config.num_embeds_ada_norm,
        square=True,
    )
)
