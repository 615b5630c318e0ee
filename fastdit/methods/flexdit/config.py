"""FlexDiT: modules of blocks on a sparse token grid that follows the noise, and pooled attention below; trained."""

from dataclasses import dataclass
from typing import Any, ClassVar

from fastdit.methods.base import Method, checked_count, option, register_method
from fastdit.methods.runtime import Host, Runtime
from fastdit.methods.trained import TrainedMethod, guidance_option


@register_method
@dataclass(frozen=True)
class FlexDiT(TrainedMethod):
    """Run most blocks on a sparse grid of averaged tokens, coarser the more noise there is, and put their result back
    onto the full grid; the lowest blocks attend to the mean of all tokens alone. Trained: `fastdit train flexdit`.

    Sources: FlexDiT (Chang et al., 2024, arXiv 2412.06028), at NeurIPS 2025 as SparseDiT. Options left out are those of
    the checkpoint, or without one those published for DiT-XL/2, which stand in brackets.
    """

    name = "flexdit"
    summary = "trained: blocks on a sparse token grid that follows the noise, pooled attention in the lowest ones"
    has_dense: ClassVar[bool] = False
    when_training: ClassVar[frozenset[str]] = frozenset({"pooling", "modules", "sparse", "dense", "rate", "grid"})

    checkpoint: str | None = option(
        None, "folder or Hub id of what `fastdit train flexdit` wrote; none: untrained", path=True
    )
    pooling: int | None = option(None, "lowest blocks, whose attention is the mean of all values (2)", range=(0, None))
    modules: int | None = option(
        None,
        "modules above them: one block that makes the sparse grid, `sparse` on it, one that recovers the full grid, "
        "`dense` on it; blocks that are left over are dense (4)",
        range=(0, None),
    )
    sparse: int | None = option(None, "blocks of a module on the sparse grid alone (3)", range=(0, None))
    dense: int | None = option(None, "blocks of a module on the full grid, after recovery (1)", range=(0, None))
    rate: tuple[float, float] | float | None = option(
        None,
        "share of tokens that the sparse grid leaves out: LOW:HIGH rises from t/T = 0.25 to pure noise, a number is "
        "fixed; one for all samples of a batch (0.61:0.86)",
        range=(0, 1),
    )
    grid: int | None = option(None, "instead of rate: a fixed grid of this many tokens a side", range=(1, None))
    guidance_channels: int | None = guidance_option()

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", str(self.checkpoint))
        least_of = {"pooling": 0, "modules": 0, "sparse": 0, "dense": 0, "grid": 1, "guidance_channels": 1}
        for name, least in least_of.items():
            if getattr(self, name) is not None:
                checked_count(name, getattr(self, name), least)
        if self.rate is not None:
            object.__setattr__(self, "rate", checked_rate(self.rate))
        if self.rate is not None and self.grid is not None:
            raise ValueError("grid is a fixed sparse grid and rate chooses one by the noise: give either")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"token_grid", "batched_guidance"} if self.uses_guidance else {"token_grid"})

    @property
    def uses_guidance(self) -> bool:
        return self.guidance_channels is not None

    @property
    def neutral(self) -> bool:
        return self.pooling == 0 and self.modules == 0 and self.guidance_channels is None

    def clash(self, other: Method) -> str | None:
        if other.stage in ("block tokens", "attention tokens"):
            return "both change which tokens a block's attention sees, and weights are trained for one token grid"
        return super().clash(other)

    def bind(self, host: Host) -> Runtime:
        from fastdit.methods.flexdit.method import FlexDiTRuntime

        return FlexDiTRuntime(self, host)


def checked_rate(value: Any) -> tuple[float, float] | float:
    """A share, or a range of shares, of tokens to leave out; ValueError names `rate`."""
    parts = list(value) if isinstance(value, (tuple, list)) else [value]
    try:
        rates = [float("nan") if isinstance(part, (bool, str)) else float(part) for part in parts]
    except (TypeError, ValueError):
        rates = []
    rising = len(rates) == 1 or (len(rates) == 2 and rates[0] < rates[1])
    if not rising or not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"rate must be a share in [0, 1) or a rising range LOW:HIGH of shares, got {value!r}")
    return rates[0] if len(rates) == 1 else (rates[0], rates[1])
