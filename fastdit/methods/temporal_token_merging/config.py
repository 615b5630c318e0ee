"""TemporalTokenMerging: consecutive latent frames attend as one where there is much noise."""

from dataclasses import dataclass

from fastdit.methods.base import Method, Stage, checked_count, checked_range, option, register_method
from fastdit.methods.runtime import Host, Runtime


@register_method
@dataclass(frozen=True)
class TemporalTokenMerging(Method):
    """Average consecutive latent frames before self-attention and copy its result back to each of them.

    Residual stream and MLP keep all frames; latent frame 0 stays alone where the VAE is causal. Source: the
    temporal-dimension token merging of On-device Sora (Kim et al., arXiv 2502.04363 and 2503.23796), where the groups
    are the same in every step; that is `alternate=False`.

    With RadialAttention the noise decides: steps within `noise` are this method's and run without a mask, all others
    may be sparse. Merged steps count towards Radial's dense steps at the start, which they usually are.
    """

    name = "temporal_token_merging"
    summary = "video: consecutive latent frames attend as one where there is much noise, and get the result each"

    group: int = option(2, "latent frames that attend as one; 1 is dense", range=(1, None))
    noise: tuple[float, float] = option(
        (0.83, 1.0), "range of noise in which frames are merged; 0.83 is half of Wan's steps at shift 5", range=(0, 1)
    )
    alternate: bool = option(
        True, "begin the groups one frame later in each next step, so that no two frames attend as one in all of them; "
        "false: the same groups in every step, as published, which freezes motion inside them",
    )  # fmt: skip
    cross_attention: bool = option(
        False, "merge the queries of cross-attention to the text too, which is about 5 % of a large video's work"
    )
    motion_guard: float | None = option(
        None, "groups stay apart in which a frame differs by more than this from the one before, by the step before's "
        "estimate of the video and in units of its spread; the first step merges nothing then; unset: no guard",
        range=(0, None),
    )  # fmt: skip

    def __post_init__(self) -> None:
        checked_count("group", self.group, 1)
        object.__setattr__(self, "noise", checked_range("noise", self.noise))
        for name in ("alternate", "cross_attention"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        guard = self.motion_guard
        if guard is None:
            return
        if not isinstance(guard, (int, float)) or isinstance(guard, bool) or not 0 <= guard < float("inf"):
            raise ValueError(f"motion_guard must be a number of at least 0, or None for no guard, got {guard!r}")

    @property
    def stage(self) -> Stage:
        return "attention tokens"

    @property
    def neutral(self) -> bool:
        return self.group == 1

    @property
    def needs(self) -> frozenset[str]:
        needs = {"tokens", "video"}
        if self.cross_attention:
            needs.add("cross_attention")
        if self.motion_guard is not None:
            needs.add("flow")
        return frozenset(needs)

    @property
    def spares_tokens(self) -> bool:
        return self.neutral or self.noise != (0.0, 1.0)

    def clash(self, other: Method) -> str | None:
        if isinstance(other, TemporalTokenMerging):
            return "one TemporalTokenMerging at a time: a larger group merges more"
        if other.stage in ("block tokens", "attention tokens"):
            return "both reduce the tokens that attention sees, and neither knows what the other leaves: keep one"
        return super().clash(other)

    def bind(self, host: Host) -> Runtime:
        from fastdit.methods.temporal_token_merging.method import TemporalRuntime

        return TemporalRuntime(self, host)
