"""How much of a model's own attention the masks of RadialAttention keep, by layer, head and noise, in a dense run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.base import Method, Stage
from fastdit.methods.radial_attention.config import RadialAttention
from fastdit.methods.radial_attention.mask import geometry_of, mask_of, order_of
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.radial_mask import density
from fastdit.ops.recall import attention_recall

ROWS = 512  # queries looked at in each call, evenly spaced over the sequence


@dataclass(frozen=True)
class Recall:
    """The share of attention that one mask keeps in one call, for each head a mean over samples."""

    transformer: str
    mask: str
    density: float
    layer: int
    noise: float
    heads: tuple[float, ...]


@dataclass(frozen=True)
class RecallProbe(Method):
    """Runs dense, and in `looks` steps of the run adds to `found` what each of the `masks` would have kept."""

    name = "attention_recall"
    summary = "measures which share of the attention a mask keeps"

    masks: tuple[tuple[str, RadialAttention], ...] = ()
    looks: int = 5
    found: list[Recall] = field(default_factory=list, compare=False)

    @property
    def stage(self) -> Stage:
        return "attention kernel"

    @property
    def neutral(self) -> bool:
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"video", "one_sdpa"})

    def bind(self, host: Host) -> "ProbeRuntime":
        return ProbeRuntime(self, host)


def probe(method: RadialAttention, looks: int = 5) -> RecallProbe:
    """A probe for the mask of these settings in both orders of tokens, at equal density."""
    return RecallProbe(tuple((order, replace(method, token_order=order)) for order in ("raster", "tile")), looks)


@dataclass
class ProbeRuntime:
    """Puts a listening kernel into every layer in the steps that are looked at."""

    method: RecallProbe
    host: Host
    report: MethodReport = field(default_factory=MethodReport)

    @property
    def uses_attention(self) -> bool:
        return True

    def install(self, ledger: PatchLedger) -> None:
        self.report.layers = len(self.host.wrappers)

    def start(self) -> None:
        for wrapper in self.host.wrappers:
            wrapper.kernel = None

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return frozenset()

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        masks = self.masks(layout)
        if all(bool(mask.all()) for _, mask, _ in masks):
            return f"the mask keeps all pairs of {layout.frames} frames: take a longer video"
        return None

    def plan(self, forward: Forward) -> None:
        """Nothing is changed, so nothing is planned."""

    def apply(self, plan: None, forward: Forward) -> None:
        looks, last = min(self.method.looks, forward.num_steps), forward.num_steps - 1
        steps = {round(last * look / max(1, looks - 1)) for look in range(looks)}
        looked_at = forward.step_index in steps and forward.pass_index == 0
        for layer, wrapper in enumerate(self.host.wrappers):
            wrapper.kernel = Listener(self, layer, forward) if looked_at else None

    def book(self, plan: None, forward: Forward) -> float:
        self.report.book(self.report.layers, 1.0)
        return 1.0

    def masks(self, layout: TokenLayout) -> list[tuple[str, Tensor, Tensor | None]]:
        """(name, mask, order) of all masks for a layout."""
        video = replace(layout, text_length=0)
        found = []
        for name, method in self.method.masks:
            geometry = geometry_of(method, video)
            found.append((name, mask_of(method, geometry), order_of(method, geometry)))
        return found


@dataclass(frozen=True)
class Listener:
    """Answers an attention call as PyTorch does and notes what the masks would have kept among the video's tokens."""

    runtime: ProbeRuntime
    layer: int
    forward: Forward

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if query.is_meta:  # the count of MACs
            return F.scaled_dot_product_attention(query, key, value, **options)
        layout = self.forward.layout
        q, k = (x[:, :, : layout.tokens].transpose(1, 2) for x in (query, key))  # (B, N, H, D)
        masks = self.runtime.masks(layout)
        block_size = geometry_of(self.runtime.method.masks[0][1], layout).block_size
        rows = min(ROWS, layout.tokens)
        shares = attention_recall(
            q, k, [mask for _, mask, _ in masks], [order for *_, order in masks], block_size=block_size, rows=rows
        )  # (masks, B, H)
        for (name, mask, _), share in zip(masks, shares, strict=True):
            heads = tuple(share.mean(0).tolist())
            found = Recall(self.runtime.host.label, name, density(mask), self.layer, self.forward.noise, heads)
            self.runtime.method.found.append(found)
        return F.scaled_dot_product_attention(query, key, value, **options)


def by_layer(found: Sequence[Recall], transformer: str = "transformer") -> dict[str, Tensor]:
    """The mean over steps for each mask in one of the pipeline's transformers: (layers, heads)."""
    found = [item for item in found if item.transformer == transformer]
    layers = 1 + max(item.layer for item in found)
    names = dict.fromkeys(item.mask for item in found)
    return {
        name: torch.stack([
            torch.tensor([item.heads for item in found if (item.mask, item.layer) == (name, layer)]).mean(0)
            for layer in range(layers)
        ])
        for name in names
    }  # fmt: skip
