"""DyDiT: heads and feed-forward channels by the timestep, feed-forward tokens by their content; trained."""

from dataclasses import dataclass
from typing import Any, ClassVar

from fastdit.methods.base import Method, checked_count, option, register_method
from fastdit.methods.runtime import Host, Runtime
from fastdit.methods.trained import TrainedMethod, guidance_option

ROUTES = ("all", "width", "tokens")


@register_method
@dataclass(frozen=True)
class DyDiT(TrainedMethod):
    """Leave out attention heads and groups of feed-forward channels by the timestep, and let tokens pass by the
    feed-forward layer by their content; which ones is trained (`fastdit train dydit`).

    Sources: DyDiT (Zhao et al., ICLR 2025, arXiv 2410.03456) and DyDiT++ (arXiv 2504.06803). Weights are sliced and
    tokens gathered, so the work is really left out.
    """

    name = "dydit"
    when_training: ClassVar[frozenset[str]] = frozenset({"route"})
    summary = "trained: heads and channels by the timestep, feed-forward tokens by their content, really left out"

    checkpoint: str | None = option(
        None, "folder or Hub id of what `fastdit train dydit` wrote; none: untrained", path=True
    )
    route: str | None = option(
        None,
        "what is routed: all, width (heads and channels) or tokens; none: what the checkpoint routes, untrained all "
        "that the model offers",
        choices=ROUTES,
    )
    heads: float = option(
        1.0, "untrained only: share of heads kept, at random, to see the speed before any training", range=(0, 1)
    )
    channels: float = option(1.0, "untrained only: share of feed-forward channels kept", range=(0, 1))
    tokens: float = option(1.0, "untrained only: share of tokens that the feed-forward layer sees", range=(0, 1))
    capacity: float | str | None = option(
        None,
        "a fixed share of tokens in every block, those of the highest scores, so that shapes never change "
        "(torch.compile); trained: each block's own mean share; none: as many as the router lets in",
    )
    tie_guidance: bool = option(False, "both halves of the guidance let the same tokens in: what one of them wants")
    guidance_channels: int | None = guidance_option()
    slice_memory: float = option(
        2.0,
        "GiB for sliced weights that are kept over a run, a set for each timestep with gates of its own; what does not "
        "fit is sliced anew in every step",
        range=(0, None),
    )

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", str(self.checkpoint))
        if self.route is not None and self.route not in ROUTES:
            raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {self.route!r}")
        for name in ("heads", "channels", "tokens"):
            _check_share(name, getattr(self, name))
            if self.checkpoint is not None and getattr(self, name) != 1:
                raise ValueError(
                    f"{name} is for untrained routers: leave it out with a checkpoint, which decides itself"
                )
        if self.route == "tokens" and (self.heads, self.channels) != (1, 1):
            raise ValueError("heads and channels stay whole with route=tokens: leave them out")
        if self.route == "width" and (self.tokens != 1 or self.capacity is not None):
            raise ValueError("tokens and capacity mean nothing with route=width: leave them out")
        if isinstance(self.capacity, str) and self.capacity != "trained":
            raise ValueError(f"capacity must be a share in (0, 1], 'trained' or none, got {self.capacity!r}")
        if self.capacity == "trained" and self.checkpoint is None:
            raise ValueError("capacity=trained takes the shares of a checkpoint: give one")
        if self.capacity is not None and not isinstance(self.capacity, str):
            _check_share("capacity", self.capacity)
        if self.capacity is not None and self.tokens != 1:
            raise ValueError("tokens is a fixed share already: give either tokens or capacity")
        if not isinstance(self.tie_guidance, bool):
            raise ValueError(f"tie_guidance must be true or false, got {self.tie_guidance!r}")
        if self.guidance_channels is not None:
            checked_count("guidance_channels", self.guidance_channels, 1)
        memory = self.slice_memory
        if not isinstance(memory, (int, float)) or isinstance(memory, bool) or not memory >= 0:
            raise ValueError(f"slice_memory must be a number of GiB of at least 0, got {memory!r}")

    @property
    def neutral(self) -> bool:
        shares = self.heads, self.channels, self.tokens, self.capacity or 1
        return self.checkpoint is None and shares == (1, 1, 1, 1) and self.guidance_channels is None

    @property
    def uses_guidance(self) -> bool:
        return self.tie_guidance or self.guidance_channels is not None

    @property
    def needs(self) -> frozenset[str]:
        needs = {"dynamic_tokens"} if self.route != "width" else set()
        if self.route in ("all", "width") or self.heads < 1 or self.channels < 1:
            needs.add("dynamic_width")
        if self.uses_guidance:
            needs.add("batched_guidance")
        return frozenset(needs)

    def clash(self, other: Method) -> str | None:
        if isinstance(other, DyDiT):
            return "one DyDiT at a time"
        return super().clash(other)

    def bind(self, host: Host) -> Runtime:
        from fastdit.methods.dydit.method import DyDiTRuntime

        return DyDiTRuntime(self, host)


def _check_share(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"{name} must be a share in (0, 1], got {value!r}: 1 keeps all")
