"""One training forward as a module: the transformer under its method, and the parts of the loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdit.methods.lora import TimeLoRA
from fastdit.methods.trained import TrainedRuntime
from fastdit.models.base import ModelFamily
from fastdit.training.objectives import Objective
from fastdit.training.options import TrainOptions

Batch = dict[str, Any]  # latents (B, ...), noise like it, time (B,), conditions: {transformer argument: tensor}


class Learner(nn.Module):
    """What accelerate prepares: transformer, the method's own parameters, low-rank ones; gives the parts of the loss.

    `runtime` is None where the method has no parameters; the teacher is no child, as it is neither trained nor saved.
    """

    def __init__(
        self, transformer: nn.Module, family: ModelFamily, objective: Objective, options: TrainOptions,
        runtime: TrainedRuntime | None = None, low_rank: TimeLoRA | None = None, teacher: nn.Module | None = None,
        weighting: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.transformer = transformer
        self.method = None if runtime is None else runtime.module
        self.low_rank = low_rank
        self.runtime, self.family, self.objective, self.options = runtime, family, objective, options
        self.weighting = weighting
        self._teacher = (teacher,)

    def forward(self, batch: Batch, target: float | None = None) -> dict[str, Tensor]:
        """Parts of the loss, each a mean over the batch; "loss" is their weighted sum.

        With a target the routed work is steered to it (DyDiT, eq. 9): weight * (mean share - target)^2. Without one it
        is the loss of the data alone.
        """
        prediction, sample_loss = self.predict(batch)
        parts = {"data": sample_loss.mean()}
        loss = parts["data"]
        share = self.runtime.executed() if self.runtime is not None and target is not None else None  # (B,)
        if share is not None:
            assert target is not None
            parts["share"] = share.float().mean()
            parts["steering"] = (parts["share"] - target) ** 2
            loss = loss + self.options.target_weight * parts["steering"]
        if self._teacher[0] is not None and target is not None:
            with torch.no_grad():
                wanted = call(self._teacher[0], batch, self.objective)
            parts["distance"] = F.mse_loss(prediction.float(), wanted.float())
            loss = loss + self.options.distill * parts["distance"]
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def predict(self, batch: Batch, weighting: str | None = None) -> tuple[Tensor, Tensor]:
        """The prediction (B, ...), and the loss of each sample (B,)."""
        latents, noise, time = batch["latents"], batch["noise"], batch["time"]
        if self.low_rank is not None:
            timestep = self.objective.noisy(latents, noise, time)[1]
            self.low_rank.set_embedding(self.family.time_embedding(self.transformer, timestep))
        prediction = call(self.transformer, batch, self.objective)
        return prediction, self.objective.loss(prediction, latents, noise, time, weighting or self.weighting)

    def to(self, *args: Any, **kwargs: Any) -> "Learner":
        """Move everything, the teacher too."""
        for teacher in filter(None, self._teacher):
            teacher.to(*args, **kwargs)
        return super().to(*args, **kwargs)


def call(transformer: nn.Module, batch: Batch, objective: Objective) -> Tensor:
    """The prediction of a transformer for noisy latents."""
    hidden_states, timestep = objective.noisy(batch["latents"], batch["noise"], batch["time"])
    return transformer(hidden_states=hidden_states, timestep=timestep, **batch["conditions"], return_dict=False)[0]
