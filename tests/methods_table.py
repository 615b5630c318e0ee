"""One row per method for the free matrix: settings that must change nothing, and settings that must change something.

A new method adds its row here and nothing else; `tests/matrix` does the rest.
"""

from dataclasses import dataclass, field
from typing import Any

from fastdit import BlockStreaming, FlexDiT, LinearProportionalLeap, RadialAttention, TemporalTokenMerging, TokenMerging
from fastdit.attention.processor import ProcessorWrapper
from fastdit.methods.base import Method
from fastdit.methods.dydit import DyDiT
from fastdit.methods.dydit.tokens import TokenRouting
from fastdit.methods.dydit.width import Slot
from fastdit.methods.flexdit.blocks import GridBlock, PooledAttention
from fastdit.methods.linear_proportional_leap.method import LeapingStep
from fastdit.methods.token_merging.block import MergedBlock


@dataclass(frozen=True)
class Setting:
    """A method, and the (class, function) that its calls go through where it is installed."""

    method: Method
    seam: tuple[type, str]

    def __str__(self) -> str:
        """A short name for test ids: what differs from the defaults."""
        default = type(self.method)().to_dict()
        own = {k: v for k, v in self.method.to_dict().items() if default[k] != v}
        return "-".join([self.method.name, *(f"{k}={v}" for k, v in own.items())]).replace(" ", "")


@dataclass(frozen=True)
class Row:
    """`falling` is one method at falling cost; `bad` are options that must be refused, each naming its field.

    `steps` is the least number of steps of a run in which all of them act.
    """

    neutral: tuple[Setting, ...]
    active: tuple[Setting, ...]
    falling: tuple[Method, ...]
    command_lines: dict[str, Method]
    bad: tuple[tuple[str, Any], ...]
    clashes: tuple[tuple[Method, Method], ...] = field(default=())
    steps: int = 2


GRID, POOLED = (GridBlock, "__call__"), (PooledAttention, "__call__")
ATTENTION, BLOCK, STEP = (ProcessorWrapper, "run"), (MergedBlock, "__call__"), (LeapingStep, "__call__")
ROUTING, SLICED = (TokenRouting, "decide"), (Slot, "__call__")

TABLE: dict[str, Row] = {
    "token_merging": Row(
        neutral=(
            Setting(TokenMerging(density=1), ATTENTION),
            Setting(TokenMerging(density=1, scope="block"), BLOCK),
        ),
        active=(
            Setting(TokenMerging(), ATTENTION),
            Setting(TokenMerging(reducer="pool", reuse_steps=1), ATTENTION),
            Setting(TokenMerging(reducer="prune", reuse_blocks=0), ATTENTION),
            Setting(TokenMerging(tokens="q"), ATTENTION),
            Setting(TokenMerging(tokens="kv", proportional=True), ATTENTION),
            Setting(TokenMerging(proportional=True, density="linear:0.5:0.75"), ATTENTION),
            Setting(TokenMerging(scope="block"), BLOCK),
            Setting(TokenMerging(scope="block", reducer="prune"), BLOCK),
        ),
        falling=tuple(TokenMerging(density=density) for density in (1, 0.75, 0.5, 0.25)),
        command_lines={
            "token_merging": TokenMerging(),
            "token-merging:density=0.3": TokenMerging(density=0.3),
            "token_merging:density=linear:0.4:0.9,reducer=pool,layers=0.25:1,reuse-steps=3": TokenMerging(
                density="linear:0.4:0.9", reducer="pool", layers=(0.25, 1), reuse_steps=3
            ),
            "token_merging:density=points:1=0.4:0=0.9,tokens=kv,proportional=true": TokenMerging(
                density="points:1=0.4:0=0.9", tokens="kv", proportional=True
            ),
            "token_merging:scope=block,noise=0.2:0.9": TokenMerging(scope="block", noise=(0.2, 0.9)),
        },
        bad=(
            ("density", 0),
            ("density", 1.5),
            ("density", -0.5),
            ("density", "linear:0.4"),
            ("density", float("nan")),
            ("density", True),
            ("reducer", "melt"),
            ("scope", "head"),
            ("tokens", "k"),
            ("layers", (0.5, 0.5)),
            ("layers", 3),
            ("noise", (-0.1, 1)),
            ("noise", "high"),
            ("reuse_steps", 0),
            ("reuse_steps", 1.5),
            ("reuse_blocks", -1),
            ("proportional", "yes"),
        ),
        clashes=((TokenMerging(), TokenMerging(reducer="pool")), (TokenMerging(), TokenMerging(scope="block"))),
    ),
    "block_streaming": Row(  # it needs a saved folder: tests/methods/test_block_streaming.py runs it on every family
        neutral=(),
        active=(),
        falling=(),
        command_lines={
            "block_streaming": BlockStreaming(),
            "block-streaming:memory-budget=2.5GiB,drop-cache=false": BlockStreaming("2.5GiB", drop_cache=False),
            "block_streaming:memory_budget=25%,source=models/wan": BlockStreaming("25%", source="models/wan"),
        },
        bad=(
            *(("memory_budget", value) for value in ("much", 0, -1, "0%", "101%", "4 GiBs", True, 1.5, "")),
            ("source", 3),
            ("drop_cache", "no"),
        ),
        clashes=((BlockStreaming(), BlockStreaming("1GiB")),),
    ),
    "flexdit": Row(  # its neutral setting installs nothing: tests/methods/test_flexdit.py
        neutral=(),
        active=(
            Setting(FlexDiT(pooling=0, modules=1, sparse=0, dense=0, rate=0.75), GRID),
            Setting(FlexDiT(pooling=0, modules=1, sparse=0, dense=0), GRID),
            Setting(FlexDiT(pooling=2, modules=0), POOLED),
        ),
        falling=(
            FlexDiT(pooling=0, modules=0),
            *(FlexDiT(pooling=0, modules=1, sparse=0, dense=0, rate=rate) for rate in (0.5, 0.75, 0.9)),
        ),
        command_lines={
            "flexdit": FlexDiT(),
            "flexdit:pooling=1,modules=2,sparse=2,dense=0,rate=0.44:0.61": FlexDiT(
                pooling=1, modules=2, sparse=2, dense=0, rate=(0.44, 0.61)
            ),
            "flexdit:checkpoint=out/flexdit,grid=8": FlexDiT(checkpoint="out/flexdit", grid=8),
        },
        bad=(
            ("pooling", -1),
            ("pooling", True),
            ("modules", 1.5),
            ("sparse", "three"),
            ("dense", -1),
            ("rate", 1),
            ("rate", -0.1),
            ("rate", (0.9, 0.5)),
            ("rate", (0.1, 0.2, 0.3)),
            ("rate", "high"),
            ("rate", float("nan")),
            ("rate", True),
            ("grid", 0),
            ("grid", 2.5),
        ),
        clashes=(
            (FlexDiT(), FlexDiT(pooling=1)),
            (FlexDiT(), TokenMerging()),
            (FlexDiT(), TokenMerging(scope="block")),
        ),
    ),
    "radial_attention": Row(
        neutral=(Setting(RadialAttention(dense_share=1.0, dense_layers=0), ATTENTION),),
        active=(
            Setting(RadialAttention(decay=0.2, dense_share=0, dense_layers=0), ATTENTION),
            Setting(RadialAttention(decay=0.2, dense_share=0, dense_layers=0, token_order="tile"), ATTENTION),
        ),
        falling=(
            RadialAttention(dense_share=1.0, dense_layers=0),
            RadialAttention(decay=0.2, dense_share=0.5, dense_layers=0),
            RadialAttention(decay=0.2, dense_share=0, dense_layers=0),
        ),
        command_lines={
            "radial_attention": RadialAttention(),
            "radial-attention:decay=0.2,dense-steps=12": RadialAttention(decay=0.2, dense_steps=12),
            "radial_attention:decay=0.95,sink=false,dense-layers=0,dense-share=0.3,dense-end=1": RadialAttention(
                decay=0.95, sink=False, dense_layers=0, dense_share=0.3, dense_end=1
            ),
            "radial_attention:block_size=64,near-width=0.5,token-order=tile,backend=sdpa,noise=0:0.9": RadialAttention(
                block_size=64, near_width=0.5, token_order="tile", backend="sdpa", noise=(0, 0.9)
            ),
        },
        bad=(
            ("decay", 0),
            ("decay", -1),
            ("decay", float("nan")),
            ("decay", "wide"),
            ("dense_share", 1.5),
            ("dense_share", True),
            ("dense_steps", -1),
            ("dense_steps", 2.5),
            ("dense_end", -1),
            ("dense_layers", "first"),
            ("noise", (0.5, 0.5)),
            ("block_size", 0),
            ("block_size", "large"),
            ("sink", 1.0),
            ("near_width", 0),
            ("near_width", 1.5),
            ("token_order", "hilbert"),
            ("backend", "magic"),
            ("dense_backend", "magic"),
        ),
        clashes=(
            (RadialAttention(), RadialAttention(decay=0.2)),
            (RadialAttention(), TokenMerging()),
            (RadialAttention(), TokenMerging(scope="block")),
        ),
    ),
    "linear_proportional_leap": Row(
        neutral=(Setting(LinearProportionalLeap(noise=0), STEP),),
        active=(Setting(LinearProportionalLeap(leap_step=2), STEP),),  # behind Wan 2.2's first expert
        falling=(LinearProportionalLeap(noise=0), LinearProportionalLeap(leap_step=2)),
        command_lines={
            "linear_proportional_leap": LinearProportionalLeap(),
            "linear-proportional-leap:noise=0.5,tolerance=0.001,patience=5": LinearProportionalLeap(
                noise=0.5, tolerance=0.001, patience=5
            ),
            "linear_proportional_leap:leap-step=16": LinearProportionalLeap(leap_step=16),
        },
        bad=(
            ("noise", -0.1),
            ("noise", 1.5),
            ("noise", "late"),
            ("noise", float("nan")),
            ("noise", True),
            ("tolerance", -1),
            ("tolerance", float("inf")),
            ("tolerance", float("nan")),
            ("tolerance", "small"),
            ("patience", 0),
            ("patience", 1.5),
            ("leap_step", 0),
            ("leap_step", True),
            ("leap_step", "half"),
        ),
        clashes=((LinearProportionalLeap(), LinearProportionalLeap(leap_step=16)),),
        steps=3,
    ),
    "temporal_token_merging": Row(
        neutral=(Setting(TemporalTokenMerging(group=1), ATTENTION),),
        active=(
            Setting(TemporalTokenMerging(noise=(0, 1)), ATTENTION),
            Setting(TemporalTokenMerging(noise=(0, 1), group=3, motion_guard=100), ATTENTION),
        ),
        falling=(
            TemporalTokenMerging(group=1),
            TemporalTokenMerging(noise=(0.9, 1)),
            TemporalTokenMerging(noise=(0, 1)),
        ),
        command_lines={
            "temporal_token_merging": TemporalTokenMerging(),
            "temporal-token-merging:group=3,noise=0.5:1,motion-guard=0.2,cross-attention=true": TemporalTokenMerging(
                group=3, noise=(0.5, 1), motion_guard=0.2, cross_attention=True
            ),
        },
        bad=(
            ("group", 0),
            ("group", 2.5),
            ("group", True),
            ("noise", (0.9, 0.9)),
            ("noise", 0.83),
            ("alternate", "no"),
            ("cross_attention", 1),
            ("motion_guard", -0.1),
            ("motion_guard", float("nan")),
            ("motion_guard", True),
            ("motion_guard", "strict"),
        ),
        clashes=(
            (TemporalTokenMerging(), TemporalTokenMerging(group=3)),
            (TemporalTokenMerging(), TokenMerging()),
            (TemporalTokenMerging(), TokenMerging(scope="block")),
            (TemporalTokenMerging(noise=(0, 1)), RadialAttention()),
        ),
    ),
    "dydit": Row(
        neutral=(Setting(DyDiT(), ROUTING),),
        active=(
            Setting(DyDiT(tokens=0.5), ROUTING),
            Setting(DyDiT(heads=0.5, channels=0.5, tokens=0.75), SLICED),
            Setting(DyDiT(route="width", channels=0.5), SLICED),
        ),
        falling=tuple(DyDiT(tokens=share) for share in (1, 0.75, 0.5, 0.25)),
        command_lines={
            "dydit": DyDiT(),
            "dydit:checkpoint=runs/dydit-0.5,capacity=trained,tie-guidance=true": DyDiT(
                checkpoint="runs/dydit-0.5", capacity="trained", tie_guidance=True
            ),
            "dydit:heads=0.75,channels=0.75,tokens=0.6,slice_memory=0": DyDiT(
                heads=0.75, channels=0.75, tokens=0.6, slice_memory=0
            ),
            "dydit:route=tokens,capacity=0.5,guidance-channels=3": DyDiT(
                route="tokens", capacity=0.5, guidance_channels=3
            ),
        },
        bad=(
            ("route", "depth"),
            *((name, value) for name in ("heads", "channels", "tokens") for value in (0, 1.5, -1, float("nan"), True)),
            ("tokens", "half"),
            ("capacity", 0),
            ("capacity", 2),
            ("capacity", "most"),
            ("capacity", "trained"),  # without a checkpoint
            ("tie_guidance", 1),
            ("guidance_channels", 0),
            ("guidance_channels", 1.5),
            ("slice_memory", -1),
            ("slice_memory", "1GiB"),
        ),
        clashes=((DyDiT(), DyDiT(tokens=0.5)), (DyDiT(), TokenMerging(scope="block"))),
    ),
}
