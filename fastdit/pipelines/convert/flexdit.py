"""FlexDiT's (SparseDiT's) published checkpoints: blocks by role, in modules, and two layers at each recovery."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fastdit.methods.flexdit import FlexDiT
from fastdit.pipelines.convert.base import CONVERTERS, Converted, Converter
from fastdit.pipelines.convert.shared import Block, read_geometry, take_dit
from fastdit.pipelines.convert.source import Source

SPARSE_GRID = 8  # of the authors' scripts; no checkpoint says it
KINDS = ("token_merge_blocks", "semantic_blocks", "token_recover_blocks", "normal_blocks")  # of a module, in order
MERGED = {"sparse": "merged_layer1", "full": "merged_layer2"}  # what recovery does to upsampled tokens and full map


@dataclass(frozen=True)
class Groups:
    """How many blocks there are of each kind: the lowest, modules, in a module, and above."""

    pooling: int
    modules: int
    sparse: int
    dense: int
    top: int

    def blocks(self) -> Iterator[Block]:
        """In order of execution."""
        for index in range(self.pooling):
            yield Block(f"poolingformer_blocks.{index}", "pooled")
        for module in range(self.modules):
            path = f"dumbbell_blocks.{module}"
            yield Block(f"{path}.token_merge_blocks.0", "cross")
            yield from (Block(f"{path}.semantic_blocks.{index}") for index in range(self.sparse))
            yield Block(f"{path}.token_recover_blocks.0", "cross")
            yield from (Block(f"{path}.normal_blocks.{index}") for index in range(self.dense))
        for index in range(self.top):
            yield Block(f"normal_blocks.{index}")


def read(source: Source, num_heads: int | None, sparse_grid: int = SPARSE_GRID) -> Converted:
    """Every tensor under our names; ValueError for groups that are no repetition of one module."""
    groups = read_groups(source)
    blocks = list(groups.blocks())
    geometry = read_geometry(source, len(blocks), None, num_heads)
    if not 1 <= sparse_grid <= geometry.side:
        raise ValueError(
            f"--sparse-grid {sparse_grid}: {source.label} is for {geometry.side} x {geometry.side} tokens, give 1 to "
            f"{geometry.side}"
        )
    state = take_dit(source, geometry, blocks)
    own: dict[str, Tensor] = {}
    for module in range(groups.modules):
        for ours, theirs in MERGED.items():
            path = f"dumbbell_blocks.{module}.token_recover_blocks.0.{theirs}"
            layer = source.linear(path, geometry.width, geometry.width)
            own |= {f"recover.{module}.{ours}.{word}": value for word, value in layer.items()}
    method = FlexDiT(
        pooling=groups.pooling, modules=groups.modules, sparse=groups.sparse, dense=groups.dense, grid=sparse_grid
    )
    return Converted(geometry, state, method, own)


def read_groups(source: Source) -> Groups:
    """The groups by the numbers in the names."""
    modules = source.count("dumbbell_blocks")
    found = [tuple(source.count(f"dumbbell_blocks.{module}.{kind}") for kind in KINDS) for module in range(modules)]
    for module, counts in enumerate(found):
        generate, sparse, recover, dense = counts
        if (generate, recover) != (1, 1):
            raise ValueError(
                f"{source.label}: dumbbell_blocks.{module} has {generate} token_merge_blocks and {recover} "
                "token_recover_blocks, and FlexDiT's modules have one of each"
            )
        if counts != found[0]:
            raise ValueError(
                f"{source.label}: dumbbell_blocks.{module} has {sparse} sparse and {dense} dense blocks, "
                f"dumbbell_blocks.0 has {found[0][1]} and {found[0][3]}, and FlexDiT's modules are all alike"
            )
    _, sparse, _, dense = found[0] if found else (0, 0, 0, 0)
    return Groups(source.count("poolingformer_blocks"), modules, sparse, dense, source.count("normal_blocks"))


CONVERTERS.register("flexdit", Converter("FlexDiT", ("dumbbell_blocks.", "poolingformer_blocks."), read))
