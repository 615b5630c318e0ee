"""Pipelines for the evaluation: a pipeline with a recipe becomes a callable from items to samples, and its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdit.cli import options as o
from fastdit.evaluation.environment import environment
from fastdit.evaluation.generate import Drawn, Run, to_uint8
from fastdit.evaluation.manifest import Item


def drawers(pipe: Any, model: str, runs: Sequence[tuple[str, Path, Any]], call: dict[str, Any], fps: int) -> list[Run]:
    """One Run a (name, folder, recipe) on one loaded pipeline, whose methods are exchanged as the runs take turns."""
    pipe.set_progress_bar_config(disable=True)
    given = o.call_arguments(pipe, call)
    where = environment(str(pipe.device))
    made: list[Run] = []
    at_work = [""]
    weights = fingerprint(pipe)
    for name, folder, recipe in runs:
        # None: the recipe beside the model, loaded with it
        methods = pipe.methods if recipe is None else recipe.methods
        more = {} if recipe is None else recipe.call
        settings = {
            "model": model,
            "weights": weights,
            "methods": [method.to_dict() for method in methods],
            "call": {**pipe.call_defaults, **more, **given},
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "device": pipe.device.type,
            **({"fps": fps} if o.makes_videos(pipe) else {}),
        }
        made.append(Run(name, folder, settings, _Draw(pipe, name, methods, {**more, **given}, at_work), where))
    return made


def fingerprint(pipe: Any) -> str:
    """Twelve hex digits of the transformers' weights.

    A path or Hub id says where weights came from, not which they are: a folder may have been trained on since.
    """
    import hashlib

    from fastdit.core.weights import weights_hash
    from fastdit.pipelines.hosts import transformers_of

    marks = [f"{label} {weights_hash(module)}" for label, module in transformers_of(pipe).items()]
    return hashlib.sha256(" ".join(marks).encode()).hexdigest()[:12]


def check_items(pipe: Any, items: Sequence[Item]) -> None:
    """ValueError, before the first sample, for classes that the model does not know or does not take."""
    import inspect

    takes_classes = "class_labels" in inspect.signature(type(pipe).__call__).parameters
    if not takes_classes and any(item.label is not None for item in items):
        raise ValueError(f"{type(pipe).__name__} is given prompts, not classes: this protocol is for another model")
    o.prompt_arguments(pipe, list(dict.fromkeys(item.prompt for item in items)))


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
