"""Times of a training batch: shares t / T in [0, 1], where 1 is pure noise. For a flow model the share is its sigma.

A distribution is given by its quantile function. An interval restricts the uniform numbers that go into it, and strata
spread them over the batch, whatever the distribution is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdit.core.registry import Registry

SPREAD = 1.2  # of the logit-normal distribution's logits


@dataclass(frozen=True)
class Distribution:
    """Times on [0, 1]: `quantile` of uniform numbers, and its inverse `share`, both monotone."""

    quantile: Callable[[torch.Tensor], torch.Tensor]
    share: Callable[[torch.Tensor], torch.Tensor]


TIMES: Registry[Distribution] = Registry("kind of times")
TIMES.register("stratified", Distribution(lambda u: u, lambda t: t))  # uniform: what strata are published with
TIMES.register(  # Esser et al. 2024, section 3.1
    "logit-normal",
    Distribution(
        quantile=lambda u: torch.sigmoid(SPREAD * torch.special.ndtri(u)),
        share=lambda t: torch.special.ndtr(torch.logit(t) / SPREAD),
    ),
)


def shifted(time: torch.Tensor, shift: float) -> torch.Tensor:
    """s t / (1 + (s - 1) t): moved towards noise for a shift s > 1 (Esser et al. 2024, equation 23)."""
    return (shift * time / (1 + (shift - 1) * time)).clamp(0, 1)


def draw_times(
    batch: int,
    generator: torch.Generator,
    *,
    interval: Sequence[float] = (0.0, 1.0),
    strata: int = 4,
    flow_shift: float = 1.0,
    kind: str = "stratified",
    steps: int | None = None,
) -> torch.Tensor:
    """Times (batch,) float32 with low <= t < high, drawn with a CPU generator; `kind` is one of TIMES.

    Sample i lies in part i mod `strata` of the distribution (DyDiT, Zhao et al. 2025: quarters), so that every batch
    sees all noise levels. A batch that is no multiple of `strata` begins at a random part, else a batch of 1 would
    only ever see the first. With `steps` the times are whole multiples of 1 / steps. ValueError for an interval
    outside of [0, 1] or without a single step.
    """
    low, high = (float(bound) for bound in interval)
    if not 0 <= low < high <= 1:
        raise ValueError(f"interval must satisfy 0 <= low < high <= 1, got {low:g}:{high:g}")
    if strata < 1:
        raise ValueError(f"strata must be at least 1, got {strata}")
    if not flow_shift > 0:
        raise ValueError(f"flow_shift must be above 0, got {flow_shift:g}")
    distribution = TIMES[kind]
    parts = torch.arange(batch)
    if batch % strata:
        parts = parts + torch.randint(strata, (1,), generator=generator)
    uniform = (parts % strata + torch.rand(batch, generator=generator, dtype=torch.float64)) / strata  # (B,)
    bounds = torch.tensor([low, high], dtype=torch.float64)
    first, last = distribution.share(shifted(bounds, 1 / flow_shift))
    time = shifted(distribution.quantile(first + (last - first) * uniform), flow_shift)
    if steps is not None:
        return _on_steps(time, low, high, steps)
    below = torch.nextafter(bounds[1].float(), torch.tensor(0.0))  # the last float32 under the interval's end
    return time.float().clamp(bounds[0].float(), below)


def _on_steps(time: torch.Tensor, low: float, high: float, steps: int) -> torch.Tensor:
    """The steps k / steps that times fall into, of those with low <= k / steps < high."""
    first, end = (math.ceil(bound * steps - 1e-6) for bound in (low, high))
    if end <= first:
        raise ValueError(f"the interval {low:g}:{high:g} holds none of the {steps} timesteps: make it wider")
    return ((time * steps).floor().clamp(first, end - 1) / steps).float()


def flow_shift_of(scheduler: Any, tokens: int) -> float:
    """The shift that the scheduler gives to the times of a run on so many image tokens; 1 where it has none.

    With dynamic shifting it is e^mu, mu linear in the tokens (FLUX; `calculate_shift` of diffusers' pipelines).
    """
    config = scheduler.config
    if config.get("use_dynamic_shifting", False):
        fewest, most = config.get("base_image_seq_len") or 256, config.get("max_image_seq_len") or 4096
        base, top = config.get("base_shift") or 0.5, config.get("max_shift") or 1.15
        mu = base + (top - base) * (tokens - fewest) / (most - fewest)
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return float(config.get("flow_shift") or config.get("shift") or 1.0)
