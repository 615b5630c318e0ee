"""TemporalTokenMerging on the bundled video model: how much motion is left, for ranges of noise and motion guards.

    python benchmarks/on_device_motion.py                                  # the table of docs/on-device.md, n = 16
    python benchmarks/on_device_motion.py --settings noise=0.5:1 group=3   # others
    python benchmarks/on_device_motion.py --prompts 4 --steps 5            # a quick look

Dense and merged clips from the same noise (seed 0), uint8 frames, the model's own default call. `all` is the motion
(mean absolute difference of consecutive frames) of the merged clips over that of the dense ones. It hides what merging
does: two latent frames that freeze together are made good by the jump that follows. `inside` therefore counts only the
steps from one latent frame to the next inside a merged group. Ratios of means over the clips, 95 % bootstrap interval.
"""

import argparse
import random
import warnings

import numpy as np
import torch

from fastdit import FastDiTPipeline, zoo
from fastdit.evaluation.fidelity import psnr
from fastdit.evaluation.intervals import bootstrap
from fastdit.evaluation.motion import motion, sharpness
from fastdit.methods.base import Method
from fastdit.models.base import family_of
from fastdit.ops.temporal import frame_groups

GUARDS = ("", ",motion_guard=0.24", ",motion_guard=0.2", ",motion_guard=0.16")
SETTINGS = [f"noise={low}:1{guard}" for low in (0.83, 0.7, 0.5, 0) for guard in GUARDS]


def draw(pipe: FastDiTPipeline, prompts: list[str], batch: int, steps: int | None) -> np.ndarray:
    """Clips (N, T, H, W, 3) uint8."""
    clips, more = [], {} if steps is None else {"num_inference_steps": steps}
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(0) for _ in part]
        clips.append(pipe(part, generator=generators, output_type="np", **more).frames)
    return (np.concatenate(clips) * 255).round().astype(np.uint8)


def inside(frames: int, scale: int, groups: tuple[int, ...]) -> list[int]:
    """The picture before each step that stays inside a group; latent frame f ends with picture f * scale."""
    last, places = -1, []
    for size in groups:
        places += [(last + place) * scale for place in range(1, size)]
        last += size
    return [place for place in places if place < frames - 1]


def kept(pairs: np.ndarray) -> float:
    """Ratio of means of (n, 2): merged over dense."""
    merged, dense = pairs.mean(0)
    return float(merged / dense)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="fastdit/emoji-video")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shift", type=float, help="another flow shift than the model's own")
    parser.add_argument("--settings", nargs="*", default=SETTINGS)
    args = parser.parse_args()
    prompts = random.Random(0).sample(zoo.prompts(args.model), args.prompts)
    pipe = FastDiTPipeline.from_pretrained(args.model, [])
    pipe.set_progress_bar_config(disable=True)
    if args.shift is not None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=args.shift)
    scale = pipe.vae_scale_factor_temporal
    dense = draw(pipe, prompts, args.batch, args.steps)
    latent = (dense.shape[1] - 1) // scale + 1

    print(f"{args.model}, n = {args.prompts}, {pipe.report.steps} steps, torch {torch.__version__}")
    print(
        "| setting | MACs | frames attended | motion, all (95 %) | motion, inside (95 %) | sharpness | PSNR dB (95 %) |"
    )
    print("|---|---|---|---|---|---|---|")
    for setting in args.settings:
        method = Method.parse(f"temporal_token_merging:{setting}")
        pipe.set_methods([method])
        merged = draw(pipe, prompts, args.batch, args.steps)
        groups = frame_groups(latent, method.group, family_of(pipe.transformer).causal_frames)
        places = inside(dense.shape[1], scale, groups)
        pairs = list(zip(merged, dense, strict=True))
        whole = [[motion(clip) for clip in pair] for pair in pairs]
        within = [[np.mean([motion(clip[at : at + 2]) for at in places]) for clip in pair] for pair in pairs]
        sharp = kept(np.array([[sharpness(clip) for clip in pair] for pair in pairs]))
        decibels = bootstrap([psnr(b, a) for a, b in pairs])
        report = pipe.report
        print(
            f"| {setting} | {report.macs_dense / report.macs_executed:.2f}x | {report.methods[method.name].density:.2f} "
            f"| {bootstrap(np.array(whole), statistic=kept).text(2)} | {bootstrap(np.array(within), statistic=kept).text(2)} "
            f"| {sharp:.2f} | {decibels} |",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
