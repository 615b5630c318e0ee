"""Predicting a run from the config alone: MACs per step, dense and accelerated, on the meta device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdit.core.clock import noise_levels, vp_noise
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport, RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import Forward, Host, carry_out, idle_reasons
from fastdit.models import configs
from fastdit.models.base import ModelFamily, load_families
from fastdit.pipelines.checks import checked
from fastdit.pipelines.counter import MacCounter, bind
from fastdit.pipelines.loading import first_line, locate, recipe_beside


@dataclass(frozen=True)
class Geometry:
    """A run's size: latent frames, rows and columns, and how many steps."""

    frames: int
    height: int
    width: int
    steps: int


@dataclass(frozen=True)
class ModelConfig:
    """A transformer on the meta device with its usual geometry."""

    transformer: Any
    family: ModelFamily
    vae_scale: int
    frame_scale: int
    usual: dict[str, int]
    scheduler: Any = None
    boundary: float = float("inf")  # noise from which on a transformer of its own is at work (Wan 2.2)

    def geometry(self, height: int | None, width: int | None, num_frames: int | None, steps: int | None) -> Geometry:
        """Latent geometry of pixels and frames; ValueError names a size that does not divide."""
        height, width = height or self.usual["height"], width or self.usual["width"]
        num_frames = num_frames or self.usual.get("num_frames", 1)
        multiple = self.vae_scale * self.family.patch(self.transformer.config)
        for name, value in (("height", height), ("width", width)):
            if value % multiple:
                lower = max(multiple, value // multiple * multiple)
                raise ValueError(f"{name} {value} is not divisible by {multiple}: use {lower} or {lower + multiple}")
        frames = 1 if num_frames == 1 else (num_frames - 1) // self.frame_scale + 1
        return Geometry(frames, height // self.vae_scale, width // self.vae_scale, steps or self.usual.get("steps", 50))


def read_model(model: str) -> ModelConfig:
    """The transformer of a shipped config, a bundled model, a diffusers folder or a Hub id, without weights."""
    if model in configs.names():
        data = configs.read(model)
    else:
        try:
            data = _from_pipeline(locate(model))
        except (ValueError, OSError) as error:
            raise ValueError(f"{first_line(error)}; configs that ship: {', '.join(configs.names())}") from None
    family = _family_named(data["class"])
    with torch.device("meta"):
        transformer = family.transformer_class.from_config(data["config"]).eval()  # type: ignore[attr-defined]
    frame_scale = data.get("frame_scale", 1)
    boundary = data.get("boundary") or float("inf")
    return ModelConfig(transformer, family, data["vae_scale"], frame_scale, data, data.get("scheduler"), boundary)


def _from_pipeline(path: str | Path) -> dict[str, Any]:
    """What a shipped config holds, read from a pipeline's own config files, with its scheduler."""
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(path)
    part = index.get("transformer") or index.get("transformer_2")
    config = getattr(diffusers, part[1]).load_config(path, subfolder="transformer")
    vae = diffusers.AutoencoderKL.load_config(path, subfolder="vae") if index.get("vae", [None])[0] else {}
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(path, subfolder="scheduler")
    levels = len(vae.get("block_out_channels", vae.get("dim_mult", [1] * 4))) - 1
    scale = vae.get("scale_factor_spatial", vae.get("spatial_compression_ratio", 2**levels))
    size = (config.get("sample_size") or 64) * scale
    recipe = recipe_beside(path)
    usual = {"height": size, "width": size, "num_frames": 1} | (recipe.call if recipe else {})
    return {
        "class": part[1],
        "config": config,
        "scheduler": scheduler,
        "boundary": index.get("boundary_ratio"),
        "vae_scale": scale,
        "frame_scale": vae.get("scale_factor_temporal", vae.get("temporal_compression_ratio", 4)),
        **{name: usual[name] for name in ("height", "width", "num_frames")},
        "steps": usual.get("num_inference_steps", 50),
    }


def _family_named(class_name: str) -> ModelFamily:
    by_name = {family.transformer_class.__name__: family for _, family in load_families().items()}
    if class_name not in by_name:
        raise ValueError(f"no model family describes {class_name}; known: {', '.join(sorted(by_name))}")
    return by_name[class_name]


def noise_schedule(model: ModelConfig, steps: int) -> list[float]:
    """Noise of each step: by the pipeline's own scheduler, or else the family's usual flow or VP schedule."""
    if model.scheduler is not None:
        model.scheduler.set_timesteps(steps)
        return noise_levels(model.scheduler)
    shares = [1 - index / steps for index in range(steps)]
    if model.family.prediction == "flow":
        shift = model.family.flow_shift
        return [shift * u / (1 + (shift - 1) * u) for u in shares]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return vp_noise(torch.cumprod(1 - betas, 0), torch.tensor([999 * u for u in shares]))


def profile(model: ModelConfig, methods: Sequence[Method], geometry: Geometry, guidance: bool = True) -> RunReport:
    """A predicted report (no seconds, no memory): the same plans as a real run, counted on the meta device."""
    family, transformer = model.family, model.transformer
    methods = checked(methods, [family])
    on_steps = [method for method in methods if method.stage == "step"]
    methods = [method for method in methods if method.stage not in ("load", "step")]
    host = Host("transformer", transformer, family)
    counter = MacCounter(host, methods)
    runtimes = bind(methods, host, PatchLedger())
    batch = 2 if guidance and family.guidance == "batched" else 1
    passes = 2 if guidance and family.guidance == "two passes" else 1
    inputs = family.inputs(transformer.config, batch, geometry.frames, geometry.height, geometry.width)
    layout = family.layout(transformer, inputs)
    levels = noise_schedule(model, geometry.steps)
    report = RunReport(steps=len(levels), steps_asked=len(levels))
    for method in on_steps:
        steps, note = method.foresee(levels, sum(noise >= model.boundary for noise in levels))
        report.steps = min(report.steps, steps)
        report.methods[method.name] = MethodReport(density=steps / len(levels), note=note)
    for method, runtime in zip(methods, runtimes, strict=True):
        report.methods[method.name] = runtime.report
    for runtime, reason in zip(runtimes, idle_reasons(runtimes, layout, levels), strict=True):
        runtime.report.reason = reason or ""
        report.warnings += runtime.report.cautions
    for step, noise in enumerate(levels[: report.steps]):
        for index in range(passes):
            forward = Forward(layout, batch, noise, step, geometry.steps, index)
            plans = [runtime.plan(forward) for runtime in runtimes]
            carry_out(runtimes, plans, forward, host)
            dense, executed = counter.count((), inputs, plans or [None], forward)
            row = report.book(step, noise, dense, executed)
            for method, runtime, plan in zip(methods, runtimes, plans, strict=True):
                row.density[method.name] = runtime.book(plan, forward)
    report.skip(levels[report.steps :])
    return report
