"""What a model is trained to predict: how latents are made noisy, and how the prediction is judged."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from fastdit.core.registry import Registry
from fastdit.models.base import ModelFamily
from fastdit.ops.variational import variational_bound


class Objective(Protocol):
    """How a model is trained. `steps`: its timesteps are whole numbers below that, or None; `draw_times` takes it."""

    name: str
    steps: int | None

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents, shaped as `latents` (B, ...), and the timestep (B,) as the transformer takes it."""

    def loss(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        weighting: str = "none",
    ) -> torch.Tensor:
        """Loss of each sample (B,) in float32; `weighting` is one of WEIGHTINGS."""


class Weighted(Protocol):
    """What a weighting may ask of an objective."""

    def min_snr(self, time: torch.Tensor) -> torch.Tensor:
        """min(SNR, gamma) in units of the own loss (B,): that of a clean sample's squared error, carried over."""


WEIGHTINGS: Registry[Callable[[Weighted, torch.Tensor], torch.Tensor]] = Registry("weighting")
WEIGHTINGS.register("none", lambda objective, time: torch.ones_like(time))
WEIGHTINGS.register("min-snr", lambda objective, time: objective.min_snr(time))


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, ...) of as many axes as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample (B,), over the channels that the target has."""
    return ((prediction[:, : target.shape[1]].float() - target.float()) ** 2).flatten(1).mean(1)


class Flow:
    """Flow matching: x_t = (1 - sigma) x + sigma n, and the prediction is the velocity n - x, or its opposite."""

    name: str = "flow"
    steps: int | None = None

    def __init__(self, scheduler: Any, family: ModelFamily, gamma: float = 5.0) -> None:
        self.gamma = gamma
        self.scale, self.rises = family.timestep_scale, family.timestep_rises

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = _column(time.float(), latents)
        return latents.float().lerp(noise.float(), sigma), (1 - time if self.rises else time) * self.scale

    def loss(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        weighting: str = "none",
    ) -> torch.Tensor:
        velocity = noise - latents
        return WEIGHTINGS[weighting](self, time) * _error(prediction, -velocity if self.rises else velocity)

    def min_snr(self, time: torch.Tensor) -> torch.Tensor:
        """The clean sample x_t - sigma v is off by sigma times v's error, and SNR = ((1 - sigma) / sigma)^2."""
        return torch.minimum((1 - time) ** 2, self.gamma * time**2)


class Epsilon:
    """DDPM: x_t = sqrt(a_t) x + sqrt(1 - a_t) n with the scheduler's alphas_cumprod a, and the prediction is n."""

    name: str = "epsilon"

    def __init__(self, scheduler: Any, family: ModelFamily, gamma: float = 5.0) -> None:
        self.gamma = gamma
        self.alphas_cumprod, self.betas = scheduler.alphas_cumprod.double(), scheduler.betas
        self.count = len(self.alphas_cumprod)
        self.steps: int | None = self.count

    def _timestep(self, time: torch.Tensor) -> torch.Tensor:
        """The whole step that a time falls into; the margin is for steps / T that float32 rounds down."""
        return (time.double() * self.count + 1e-3).floor().long().clamp(0, self.count - 1)

    def _kept(self, time: torch.Tensor) -> torch.Tensor:
        return self.alphas_cumprod.to(time.device)[self._timestep(time)]  # (B,)

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = _column(self._kept(time), latents)
        return kept.sqrt().float() * latents.float() + (1 - kept).sqrt().float() * noise.float(), self._timestep(time)

    def loss(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        weighting: str = "none",
    ) -> torch.Tensor:
        return WEIGHTINGS[weighting](self, time).float() * _error(prediction, noise)

    def min_snr(self, time: torch.Tensor) -> torch.Tensor:
        """min(SNR, gamma) / SNR: the clean sample is off by the noise's error / sqrt(SNR)."""
        kept = self._kept(time)
        return (self.gamma * (1 - kept) / kept).clamp(max=1)


class LearnedSigma(Epsilon):
    """Epsilon, and a second half of channels that the variances are read from (Nichol & Dhariwal 2021).

    The variational bound teaches the variances alone, as its mean is detached; its weight T / 1000 is the published
    lambda 0.001 times the T terms of the bound, of which one is drawn. Weightings are for the noise's error.
    """

    name = "epsilon with learned sigma"

    def loss(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        weighting: str = "none",
    ) -> torch.Tensor:
        mean, variance = prediction.float().chunk(2, dim=1)
        noisy, timestep = self.noisy(latents, noise, time)
        bound = variational_bound(mean.detach(), variance, latents.float(), noisy, timestep, self.betas)
        return super().loss(prediction, latents, noise, time, weighting) + self.count / 1000 * bound


PUBLISHED_MIN_SNR = {("flexdit", Epsilon.name), ("flexdit", LearnedSigma.name)}  # (method, objective), gamma 5


def weighting_of(min_snr: float | None, method: str | None, objective: Objective) -> str:
    """The weighting of a run: as --min-snr says (0: none), or without it as the method was published."""
    wanted = (method, objective.name) in PUBLISHED_MIN_SNR if min_snr is None else min_snr > 0
    return "min-snr" if wanted else "none"


OBJECTIVES: Registry[Callable[[Any, ModelFamily, float], Objective]] = Registry("objective")
OBJECTIVES.register(Flow.name, Flow)
OBJECTIVES.register(Epsilon.name, Epsilon)
OBJECTIVES.register(LearnedSigma.name, LearnedSigma)


def objective_of(pipe: Any, transformer: Any, family: ModelFamily, gamma: float = 5.0) -> Objective:
    """What this pipeline's transformer predicts: its scheduler's config says it first, then the family.

    `gamma` is where min-SNR weighting cuts the signal-to-noise ratio (Hang et al. 2023 advise 5). ValueError for what
    none of OBJECTIVES trains.
    """
    scheduler = pipe.scheduler
    config = scheduler.config
    kind = config.get("prediction_type") or family.prediction
    diffuses = hasattr(scheduler, "alphas_cumprod") and not config.get("use_flow_sigmas", False)
    if "flow" in kind or not diffuses:
        name = "flow"
    else:
        doubled = transformer.config.out_channels == 2 * transformer.config.in_channels
        name = f"{kind} with learned sigma" if doubled else kind
    if name not in OBJECTIVES:
        raise ValueError(
            f"{type(scheduler).__name__} has prediction_type={kind!r}, which is not trained here; known objectives: "
            f"{', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[name](scheduler, family, gamma)
