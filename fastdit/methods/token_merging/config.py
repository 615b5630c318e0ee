"""TokenMerging: training-free, timestep-dynamic token density."""

from dataclasses import dataclass

from fastdit.core.schedule import Schedule
from fastdit.methods.base import Method, Stage, checked_count, checked_range, option, register_method
from fastdit.methods.runtime import Host, Runtime
from fastdit.ops.reducers import REDUCERS


@register_method
@dataclass(frozen=True)
class TokenMerging(Method):
    """Run self-attention (or whole blocks) on fewer tokens, how many by the noise level; the rest is restored after.

    Sources: ToMe (Bolya et al., ICLR 2023), ToMe for Stable Diffusion (Bolya & Hoffman, 2023), ToMA (2025) on shared
    matchings, DivPrune (2025) on diversity, AsymRnR (2025) on the sensitivity of q and of shallow blocks.
    """

    name = "token_merging"
    summary = "merge, pool or prune tokens around self-attention, by a density that follows the noise"

    density: Schedule = option(
        Schedule.parse(0.5),
        "share of tokens kept: a number, or linear:A:B, cosine:A:B (A at noise 1, B at noise 0), "
        "points:noise=share:...; quantised to 1/16; 1 is dense",
        range=(0, 1),
    )
    reducer: str = option("bipartite", "how tokens are reduced: `fastdit methods` lists them", choices=REDUCERS)
    scope: str = option(
        "attention",
        "attention: merge around self-attention only; block: the MLP and cross-attention run on merged tokens too, "
        "faster and riskier",
        choices=("attention", "block"),
    )
    tokens: str = option(
        "both",
        "both: before the projections (saves most); q or kv: only that side, inside the attention call; q is the more "
        "sensitive side",
        choices=("both", "q", "kv"),
    )
    layers: tuple[float, float] = option(
        (0.0, 1.0), "range of layers as shares of the depth; shallow blocks are the more sensitive", range=(0, 1)
    )
    noise: tuple[float, float] = option((0.0, 1.0), "range of noise in which tokens are merged", range=(0, 1))
    reuse_steps: int = option(
        2, "steps of a run that share one matching; a bare transformer matches anew in every forward", range=(1, None)
    )
    reuse_blocks: int = option(4, "consecutive blocks that share one matching; 0: all of them", range=(0, None))
    proportional: bool = option(
        False, "add log(group size) to the attention of merged keys (leaves the fastest attention kernels)"
    )

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        try:
            set_(self, "density", Schedule.parse(self.density))
        except ValueError as error:
            raise ValueError(f"density: {error}") from None
        for value in self.density.values():
            if not 0 < value <= 1:
                raise ValueError(f"density must lie in (0, 1], got {value:g}: 0.5 keeps half of the tokens, 1 is dense")
        REDUCERS[self.reducer]  # an unknown name is an error that lists the known ones
        for name, choices in (("scope", ("attention", "block")), ("tokens", ("both", "q", "kv"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("layers", "noise"):
            set_(self, name, checked_range(name, getattr(self, name)))
        for name, least in (("reuse_steps", 1), ("reuse_blocks", 0)):
            checked_count(name, getattr(self, name), least)
        if not isinstance(self.proportional, bool):
            raise ValueError(f"proportional must be true or false, got {self.proportional!r}")
        if self.scope == "block" and self.tokens != "both":
            raise ValueError("tokens=q and tokens=kv act inside the attention call: use scope=attention with them")
        if self.proportional and self.scope == "block":
            raise ValueError("proportional acts inside the attention call: use scope=attention with it")
        if self.proportional and self.tokens == "q":
            raise ValueError("proportional weighs merged keys, and tokens=q merges none: use tokens=both or kv")

    @property
    def stage(self) -> Stage:
        if self.scope == "block":
            return "block tokens"
        return "attention tokens"

    @property
    def neutral(self) -> bool:
        return min(self.density.values()) == 1

    @property
    def spares_tokens(self) -> bool:
        whole = (0.0, 1.0)
        return self.noise != whole or self.layers != whole or max(self.density.values()) == 1

    @property
    def needs(self) -> frozenset[str]:
        inside = self.tokens != "both" or self.proportional
        return frozenset({"tokens", "one_sdpa"} if inside else {"tokens"})

    def clash(self, other: Method) -> str | None:
        if isinstance(other, TokenMerging):
            return "one TokenMerging at a time: put both settings into one density schedule"
        return super().clash(other)

    def bind(self, host: Host) -> Runtime:
        from fastdit.methods.token_merging.method import TokenMergingRuntime

        return TokenMergingRuntime(self, host)
