"""DyDiT's published checkpoints: a DiT whose blocks have routers of heads, of channel groups and of tokens."""

from torch import Tensor

from fastdit.methods.dydit import DyDiT
from fastdit.pipelines.convert.base import CONVERTERS, Converted, Converter
from fastdit.pipelines.convert.shared import Block, read_geometry, take_dit
from fastdit.pipelines.convert.source import Source

ROUTERS = {"heads": "attn_rate.router", "channels": "mlp_rate.router"}


def read(source: Source, num_heads: int | None) -> Converted:
    """Every tensor under our names; a router has one row less than there are heads, as the first is never closed."""
    depth = source.count("blocks")
    (rows,) = source.shape("blocks.0.attn_rate.router.bias", 1)
    geometry = read_geometry(source, depth, rows + 1, num_heads)
    state = take_dit(source, geometry, [Block(f"blocks.{index}") for index in range(depth)])
    own: dict[str, Tensor] = {}
    for index in range(depth):
        for name, layer in _routers(source, f"blocks.{index}", geometry.width, rows).items():
            own |= {f"blocks.{index}.{name}.{word}": value for word, value in layer.items()}
    return Converted(geometry, state, DyDiT(), own)


def _routers(source: Source, block: str, width: int, rows: int) -> dict[str, dict[str, Tensor]]:
    found = {ours: source.linear(f"{block}.{theirs}", rows, width) for ours, theirs in ROUTERS.items()}
    hidden = max(1, width // 16)
    found["tokens.hidden"] = source.linear(f"{block}.token_selection.mlp_head.0", hidden, width)
    found["tokens.out"] = source.linear(f"{block}.token_selection.mlp_head.2", 1, hidden)
    return found


CONVERTERS.register("dydit", Converter("DyDiT", ("attn_rate.router", "mlp_rate.router", "token_selection."), read))
