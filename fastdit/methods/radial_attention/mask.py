"""From settings and a layout to the block mask, and the order of tokens that it is made for."""

from dataclasses import dataclass

from torch import Tensor

from fastdit.core.layout import TokenLayout
from fastdit.methods.radial_attention.config import RadialAttention
from fastdit.ops.radial_mask import keeps_neighbours, radial_block_mask, with_text
from fastdit.ops.tile_order import inverse_order, tile_block_mask, tile_order

PUBLISHED = 128  # tokens in a block, and the unit of the published code
SMALL_FRAME = 256  # tokens: below, a frame has too few blocks of 128 to tell near from far


@dataclass(frozen=True)
class Geometry:
    """What a mask depends on beside the settings."""

    layout: TokenLayout
    block_size: int
    unit: int


def geometry_of(method: RadialAttention, layout: TokenLayout) -> Geometry:
    """The geometry of a forward; small frames get blocks and unit in proportion: 16 at 64 tokens, as 128 at 512."""
    if layout.text == "first":
        raise ValueError(f"{method.name} wants text behind the video, and this model has it in front")
    tokens = layout.height * layout.width
    small = tokens < SMALL_FRAME
    usual = max(4, 2 ** ((tokens // 4).bit_length() - 1)) if small and tokens >= 4 else PUBLISHED
    block_size = min(usual, layout.tokens) if isinstance(method.block_size, str) else method.block_size
    return Geometry(layout, block_size, block_size if small else PUBLISHED)


def mask_of(method: RadialAttention, geometry: Geometry) -> Tensor:
    """The mask (nb, nb) of the joint sequence; ValueError where it cuts a frame off from the next."""
    layout, block_size = geometry.layout, geometry.block_size
    tokens = layout.height * layout.width
    mask = radial_block_mask(
        layout.frames, tokens, block_size=block_size, decay=method.decay, sink=method.sink, unit=geometry.unit,
        near_width=method.near_width,
    )  # fmt: skip
    place = None
    if method.token_order == "tile":
        mask = tile_block_mask(*layout.grid, block_size=block_size, kept=int(mask.sum()), sink=method.sink)
        place = inverse_order(tile_order(*layout.grid, block_size))
    if not keeps_neighbours(mask, layout.frames, tokens, block_size, place):
        raise ValueError(
            f"block_size={block_size} with near_width={method.near_width:g} cuts frames of {tokens} tokens off from "
            "their neighbours, and motion with them: take smaller blocks, near_width=1 or token_order=raster"
        )
    return with_text(mask, layout.tokens, layout.text_length, block_size)


def order_of(method: RadialAttention, geometry: Geometry) -> Tensor | None:
    """The order of the video's tokens, or None for the host's own."""
    if method.token_order == "raster":
        return None
    return tile_order(*geometry.layout.grid, geometry.block_size)
