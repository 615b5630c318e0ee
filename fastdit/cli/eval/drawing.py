"""Pipelines for the evaluation: a pipeline with a recipe becomes a callable from items to samples, and its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdit.cli import options as o
from fastdit.evaluation.environment import environment
from fastdit.evaluation.generate import Drawn, Run, to_uint8
from fastdit.evaluation.manifest import Item


def drawers(pipe: Any, model: str, runs: Sequence[tuple[str, Path, Any]], call: dict[str, Any]) -> list[Run]:
    """One Run a (name, folder, recipe) on one loaded pipeline, whose methods are exchanged as the runs take turns."""
    pipe.set_progress_bar_config(disable=True)
    given = o.call_arguments(pipe, call)
    where = environment(str(pipe.device))
    made: list[Run] = []
    at_work = [""]
    for name, folder, recipe in runs:
        methods = (
            pipe.methods if recipe is None else recipe.methods
        )  # None: the recipe beside the model, loaded with it
        more = {} if recipe is None else recipe.call
        settings = {
            "model": model,
            "methods": [method.to_dict() for method in methods],
            "call": {**pipe.call_defaults, **more, **given},
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "device": pipe.device.type,
        }
        made.append(Run(name, folder, settings, _Draw(pipe, name, methods, {**more, **given}, at_work), where))
    return made


class _Draw:
    """Draws a batch with one run's methods; `at_work` names the run whose methods are on the pipeline."""

    def __init__(self, pipe: Any, name: str, methods: Sequence[Any], call: dict[str, Any], at_work: list[str]) -> None:
        self.pipe, self.name, self.methods, self.call, self.at_work = pipe, name, methods, call, at_work

    def __call__(self, items: Sequence[Item]) -> Drawn:
        import torch

        pipe, call = self.pipe, dict(self.call)
        if self.at_work[0] != self.name:
            pipe.set_methods(list(self.methods))
            self.at_work[0] = self.name
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(items)
        asked = o.prompt_arguments(pipe, [item.prompt for item in items])
        generators = [torch.Generator("cpu").manual_seed(item.seed) for item in items]
        out = pipe(**asked, **call, generator=generators, output_type="np")
        samples = to_uint8(out.frames if hasattr(out, "frames") else out.images)
        if samples.ndim == 4:  # pictures (B, H, W, 3) are videos of one frame
            samples = samples[:, None]
        report = pipe.report
        return Drawn(list(samples), report.seconds, report.macs_dense, report.macs_executed)
