"""RadialAttention: sparse attention for video, O(n log n) in its length."""

from dataclasses import dataclass
from typing import ClassVar

from fastdit.methods.base import Method, Stage, checked_count, checked_range, option, register_method
from fastdit.methods.runtime import Host, Runtime

ORDERS = ("raster", "tile")
DENSE_ONLY = ("xformers",)  # backends that take no radial mask


@register_method
@dataclass(frozen=True)
class RadialAttention(Method):
    """Run self-attention over video on a block mask: near frames whole, far ones in ever narrower bands.

    Source: Radial Attention (Li et al., NeurIPS 2025, arXiv 2506.19852); the published settings of Wan 2.1, Wan 2.2 and
    HunyuanVideo ship as recipes. Text is always attended whole, padded text never.
    """

    name = "radial_attention"
    summary = "sparse attention for video: the farther two frames are apart, the narrower the band that is attended"
    under_sharding: ClassVar[frozenset[str]] = frozenset({"ulysses"})  # whole sequence, some of the heads

    decay: float = option(
        1.0, "scales the bands from two frames apart on; less is sparser and riskier; 0.2 to 0.95 were published",
        range=(0, None),
    )  # fmt: skip
    dense_share: float = option(
        0.24, "share of the steps that stay dense at the start, where the layout is decided; 1 is dense", range=(0, 1)
    )
    dense_steps: int | None = option(
        None, "dense steps at the start by number; given, it stands in place of dense_share", range=(0, None)
    )
    dense_end: int = option(0, "dense steps at the end; 1 or 2 mend fine detail", range=(0, None))
    dense_layers: int = option(1, "first layers that stay dense", range=(0, None))
    noise: tuple[float, float] = option((0.0, 1.0), "range of noise in which attention may be sparse", range=(0, 1))
    block_size: int | str = option(
        "auto", "tokens in a block; auto: 128, or a quarter of a frame where that has under 256 tokens", range=(1, None)
    )
    sink: bool = option(True, "all attend the whole first frame: Wan yes, HunyuanVideo no, as published")
    near_width: float = option(
        1.0, "half-width of the band to the next frame, in frames; 0.5 is an older published form", range=(0, 1)
    )
    token_order: str = option(
        "raster", "raster: a block is a strip of rows, as published; tile: a compact patch in space and time",
        choices=ORDERS,
    )  # fmt: skip
    backend: str = option(
        "auto", "kernel of sparse calls; `fastdit env` tells which load here",
        choices=("auto", "sdpa", "flex", "flashinfer"),
    )  # fmt: skip
    dense_backend: str = option(
        "host",
        "kernel of dense steps and layers: the model's own, or another",
        choices=("host", "xformers", "sdpa", "flex", "flashinfer"),
    )

    def __post_init__(self) -> None:
        from fastdit.attention.backends.base import BACKENDS

        for name in ("decay", "dense_share", "near_width"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 < self.decay < float("inf"):
            raise ValueError(f"decay scales the width of the bands and must be above 0, got {self.decay:g}: try 0.2")
        if not 0 <= self.dense_share <= 1:
            raise ValueError(f"dense_share must lie in [0, 1], got {self.dense_share:g}: 0.24 is 12 of 50 steps")
        if not 0 < self.near_width <= 1:
            raise ValueError(f"near_width must lie in (0, 1], got {self.near_width:g}: 1 attends the next frame whole")
        for name, least, unset in (
            ("dense_steps", 0, None), ("dense_end", 0, 0), ("dense_layers", 0, 0), ("block_size", 1, "auto"),
        ):  # fmt: skip
            if getattr(self, name) != unset:
                checked_count(name, getattr(self, name), least)
        object.__setattr__(self, "noise", checked_range("noise", self.noise))
        if not isinstance(self.sink, bool):
            raise ValueError(f"sink must be true or false, got {self.sink!r}")
        if self.token_order not in ORDERS:
            raise ValueError(f"token_order must be one of {', '.join(ORDERS)}, got {self.token_order!r}")
        for name, own in (("backend", "auto"), ("dense_backend", "host")):
            known = [own, *(key for key in BACKENDS if name == "dense_backend" or key not in DENSE_ONLY)]
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def stage(self) -> Stage:
        return "attention kernel"

    @property
    def neutral(self) -> bool:
        return self.dense_share == 1 and self.dense_steps is None and self.dense_backend == "host"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"video", "one_sdpa"})

    def clash(self, other: Method) -> str | None:
        if not other.spares_tokens and not self.neutral:
            return (
                f"{other.name} reduces the tokens of every attention call, and a mask over frames and rows fits only "
                "whole sequences: limit it to some noise or layers, such as noise=0.9:1"
            )
        return super().clash(other)

    def bind(self, host: Host) -> Runtime:
        from fastdit.methods.radial_attention.method import RadialRuntime

        return RadialRuntime(self, host)
