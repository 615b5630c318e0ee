"""One step of training under DyDiT against a dense one: forward, backward and AdamW, as `fastdit train` does them.

    python benchmarks/training_step.py                      # both models: two minutes on two cores
    python benchmarks/training_step.py --only emoji --rounds 15

The bundled image model with batch 16, and DiT-XL/2's real config with 2 of its 28 blocks, random weights and batch 4.
While training gates are drawn and multiplied, so nothing is left out, and the work that is done is steered to a target.
"gated and complete" is the first part of a run (complete-model supervision): before the gated pass one with all gates
open.
The aim is at most 1.25 times a dense step, and 2.2 times with the complete model. All take turns in one process.
"""

import argparse
import functools
import statistics
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, PixArtAlphaPipeline
from diffusers.utils import logging as diffusers_logging
from dydit import inputs, transformer
from timing import in_turns, machine, ratio

from fastdit import DyDiT, zoo
from fastdit.models.base import family_of
from fastdit.training.conditions.base import Geometry, conditions_of
from fastdit.training.options import TrainOptions
from fastdit.training.times import draw_times
from fastdit.training.trainee import Trainee

OPTIONS = TrainOptions()
GATED, COMPLETE = "gated", "gated and complete"


@torch.no_grad()
def emoji() -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """The bundled image model, latents (16, ...), and what the transformer is told besides."""
    pipe = PixArtAlphaPipeline.from_pretrained(zoo.folder_of("fastdit/emoji-image"), dtype=torch.float32)
    config, told = pipe.transformer.config, conditions_of(family_of(pipe.transformer))
    rows = told.encode(pipe, zoo.prompts("fastdit/emoji-image")[:16])
    latents = torch.randn(16, config.in_channels, config.sample_size, config.sample_size)
    return pipe, latents, told.arguments(pipe.transformer, rows, Geometry((64, 64), latents.shape[-2:]), 1.0)


def dit() -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """DiT-XL/2 with 2 blocks, latents (4, ...), and what the transformer is told besides."""
    arguments = inputs(4, 32)
    pipe = SimpleNamespace(transformer=transformer(2, 32), scheduler=DDPMScheduler())
    return pipe, arguments["hidden_states"], {"class_labels": arguments["class_labels"]}


MODELS = {
    "emoji-image, batch 16": emoji,
    "DiT-XL/2, 2 of 28 blocks, 256 tokens, batch 4": dit,
}


class Step:
    """Steps of one model, dense or under a method."""

    def __init__(self, make: Any, method: DyDiT | None) -> None:
        torch.manual_seed(0)
        pipe, latents, conditions = make()
        self.trainee = Trainee(pipe, method, OPTIONS)
        conditions_of(self.trainee.family).ready(self.trainee.transformer, self.trainee.ledger)
        time = draw_times(len(latents), torch.Generator().manual_seed(0), steps=self.trainee.objective.steps)
        self.batch = {"latents": latents, "noise": torch.randn_like(latents), "time": time, "conditions": conditions}
        self.optimizer = torch.optim.AdamW(self.trainee.trained.values(), lr=1e-5, fused=True)

    def __call__(self, complete: bool = False) -> None:
        learner = self.trainee.learner
        if complete:
            with self.trainee.runtime.opened():
                learner(self.batch)["loss"].backward()
        learner(self.batch, target=0.5)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.trained.values(), OPTIONS.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trainee.engine.renew_report()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    for name, make in MODELS.items():
        if args.only and not any(word in name for word in args.only):
            continue
        dense, routed = Step(make, None), Step(make, DyDiT())
        steps = {"dense": dense, GATED: routed, COMPLETE: functools.partial(routed, complete=True)}
        seconds = in_turns(steps, args.rounds)
        print(f"{name}, one training step; {args.rounds} rounds; {machine()}")
        print("| DyDiT | s | over dense (95 %) |\n|---|---|---|")
        print(f"| dense | {statistics.median(seconds['dense']):.2f} | 1 |")
        for kind in (GATED, COMPLETE):
            middle, low, high = ratio(seconds[kind], seconds["dense"])
            print(f"| {kind} | {statistics.median(seconds[kind]):.2f} | {middle:.2f}x ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
