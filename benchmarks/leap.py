"""LinearProportionalLeap on the bundled video model: steps saved against likeness to the full run.

    python benchmarks/leap.py                    # 12 prompts, 20 steps, the table of docs/on-device.md
    python benchmarks/leap.py --steps 50 --prompts 8 --euler

A leap changes nothing before it, so one full run per prompt holds all leaps: the latents and velocities that its
scheduler was given are kept, the rule (fastdit.ops.leap) is applied to them afterwards, and where it leaps the last
latents are decoded. The first prompt is also run by the method itself, which must give the same frames.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fastdit import FastDiTPipeline, LinearProportionalLeap, zoo
from fastdit.core.clock import noise_levels
from fastdit.evaluation.fidelity import psnr, ssim
from fastdit.evaluation.generate import to_uint8
from fastdit.evaluation.intervals import bootstrap
from fastdit.evaluation.motion import motion, sharpness
from fastdit.ops.leap import Settling, cosines, leap

MODEL = "fastdit/emoji-video"
BOUNDS = (0.9, 0.83, 0.69, 0.5, 0.3)


@dataclass
class Trajectory:
    """What one full run gave its scheduler: latents and guided velocities (1, ...) of every step, and its sigmas."""

    samples: list[Tensor]
    velocities: list[Tensor]
    sigmas: list[float]
    noises: list[float]
    frames: np.ndarray  # (T, H, W, 3) uint8, of the full run

    @property
    def cosines(self) -> list[float]:
        """Of each step's velocity with that before; the first has none."""
        pairs = zip(self.velocities[1:], self.velocities, strict=False)
        return [float("nan"), *(float(cosines(new, old)) for new, old in pairs)]

    def steps(self, method: LinearProportionalLeap) -> int:
        """How many steps the method runs on this trajectory."""
        if method.leap_step is not None:
            return method.leap_step
        rule = Settling()
        for index, cosine in enumerate(self.cosines[:-1]):  # in the last step a leap saves nothing
            counts = method.counts(index, self.noises)
            if counts and rule.settled(cosine, method.tolerance, method.patience):
                return index + 1
        return len(self.samples)


def record(pipe: Any, prompt: str, seed: int, steps: int) -> Trajectory:
    scheduler, samples, velocities = pipe.scheduler, [], []
    step = scheduler.step

    def noted(model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        samples.append(sample.clone())
        velocities.append(model_output.clone())
        return step(model_output, timestep, sample, return_dict=return_dict)

    scheduler.step = noted
    try:
        frames = draw(pipe, prompt, seed, steps)
    finally:
        del scheduler.step
    return Trajectory(samples, velocities, scheduler.sigmas.tolist(), noise_levels(scheduler), frames)


def draw(pipe: Any, prompt: str, seed: int, steps: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return to_uint8(pipe(prompt, generator=generator, num_inference_steps=steps, output_type="np").frames[0])


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> np.ndarray:
    """Frames of Wan's latents (1, C, F, H, W), as its pipeline makes them."""
    config = pipe.vae.config
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    video = pipe.vae.decode(latents.to(pipe.vae.dtype) * std + mean, return_dict=False)[0]
    return to_uint8(pipe.video_processor.postprocess_video(video, output_type="np")[0])


def compared(full: np.ndarray, fast: np.ndarray) -> tuple[float, ...]:
    """PSNR, SSIM, and the ratios of sharpness and motion."""
    ratios = sharpness(fast) / sharpness(full), (motion(fast) or 0) / (motion(full) or 1)
    return psnr(full, fast), ssim(full, fast), *ratios


def texts(found: np.ndarray) -> str:
    """Cells of figures (n, 4): means with their intervals."""
    return " | ".join(bootstrap(found[:, column]).text(digits) for column, digits in enumerate((1, 3, 2, 2)))


class Leaps:
    """Figures of each leap (prompt, steps) against the full run, found when first asked for."""

    def __init__(self, pipe: Any, trajectories: list[Trajectory]) -> None:
        self.pipe, self.trajectories = pipe, trajectories
        self.known: dict[tuple[int, int], tuple[float, ...]] = {}

    def frames(self, index: int, steps: int) -> np.ndarray:
        run, at = self.trajectories[index], steps - 1
        if steps == len(run.samples):
            return run.frames
        return decode(self.pipe, leap(run.samples[at], run.velocities[at], run.sigmas[at], run.sigmas[-1]))

    def figures(self, index: int, steps: int) -> tuple[float, ...]:
        """Of the leap after so many steps."""
        if (index, steps) not in self.known:
            self.known[index, steps] = compared(self.trajectories[index].frames, self.frames(index, steps))
        return self.known[index, steps]

    def row(self, name: str, method: LinearProportionalLeap) -> str:
        """Steps over all prompts, likeness over those that leap: the others are the full run itself."""
        steps = [run.steps(method) for run in self.trajectories]
        asked = len(self.trajectories[0].samples)
        leapt = [(index, count) for index, count in enumerate(steps) if count < asked]
        spread = f"{np.mean(steps):.1f} ({min(steps)} to {max(steps)})" if min(steps) < max(steps) else f"{min(steps)}"
        figures = texts(np.array([self.figures(*one) for one in leapt])) if leapt else "| | |"
        return f"| {name} | {len(leapt)} | {spread} | {asked / np.mean(steps):.2f}x | {figures} |"


def check(pipe: Any, leaps: Leaps, prompt: str, steps: int) -> None:
    """The method itself gives what the recorded run says."""
    run = leaps.trajectories[0]
    for method in (LinearProportionalLeap(noise=0.83), LinearProportionalLeap(leap_step=steps // 2)):
        pipe.set_methods([method])
        frames = draw(pipe, prompt, 0, steps)
        assert pipe.report.steps == run.steps(method), (pipe.report.steps, run.steps(method))
        assert np.abs(frames.astype(int) - leaps.frames(0, run.steps(method))).max() <= 1
    pipe.set_methods([])


def header(title: str) -> None:
    print(f"\n| {title} | leapt | steps run | fewer | PSNR | SSIM | sharpness | motion |\n|{'---|' * 8}")


def table(title: str, rows: dict[str, LinearProportionalLeap], leaps: Leaps) -> None:
    header(title)
    for name, method in rows.items():
        print(leaps.row(name, method), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sweep", action="store_true", help="also tolerance and patience")
    parser.add_argument("--euler", action="store_true", help="first-order steps, as the authors', in place of UniPC")
    args = parser.parse_args()
    pipe = FastDiTPipeline.from_pretrained(MODEL, [])
    pipe.set_progress_bar_config(disable=True)
    if args.euler:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)
    known = zoo.prompts(MODEL)
    prompts = [known[index * len(known) // args.prompts] for index in range(args.prompts)]
    trajectories = [record(pipe, prompt, seed, args.steps) for seed, prompt in enumerate(prompts)]
    leaps = Leaps(pipe, trajectories)
    check(pipe, leaps, prompts[0], args.steps)
    print(f"{MODEL}, {type(pipe.scheduler).__name__}, {args.steps} steps, n = {len(prompts)}: {'; '.join(prompts)}")
    table("rule", {f"noise {bound}": LinearProportionalLeap(noise=bound) for bound in BOUNDS}, leaps)
    shares = sorted({round(args.steps * share) for share in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)})
    noises = trajectories[0].noises
    fixed = {f"step {n} (noise {noises[n - 1]:.2f})": LinearProportionalLeap(leap_step=n) for n in shares}
    table("fixed", fixed, leaps)
    header("a schedule of fewer steps, no leap")
    for count in (round(args.steps * share) for share in (0.4, 0.6, 0.8)):
        drawn = (draw(pipe, prompt, seed, count) for seed, prompt in enumerate(prompts))
        found = np.array([compared(run.frames, frames) for run, frames in zip(trajectories, drawn, strict=True)])
        print(f"| {count} steps | - | {count} | {args.steps / count:.2f}x | {texts(found)} |", flush=True)
    if args.sweep:
        sweep = {
            f"tolerance {tolerance:g}, patience {patience}": LinearProportionalLeap(0.83, tolerance, patience)
            for tolerance in (0, 1e-4, 1e-3, 1e-2)
            for patience in (1, 2, 3, 5)
        }
        table("rule at noise 0.83", sweep, leaps)
    print("\n| step | noise | cosine with the step before, mean | least | greatest |\n|---|---|---|---|---|")
    for index, values in enumerate(zip(*(run.cosines[1:] for run in trajectories), strict=True), 1):
        print(f"| {index + 1} | {noises[index]:.3f} | {np.mean(values):.4f} | {min(values):.4f} | {max(values):.4f} |")


if __name__ == "__main__":
    main()
