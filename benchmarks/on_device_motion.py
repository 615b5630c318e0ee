"""TemporalTokenMerging on the bundled video model: how much motion is left, for ranges of noise and motion guards.

    python benchmarks/on_device_motion.py                                  # the table of docs/on-device.md, n = 16
    python benchmarks/on_device_motion.py --settings noise=0.5:1 group=3   # others
    python benchmarks/on_device_motion.py --prompts 4 --steps 5            # a quick look

Dense and merged clips from the same noise (seed 0), uint8 frames, the model's own default call. `all` is the motion
(mean absolute difference of consecutive frames) of the merged clips over that of the dense ones. It hides what merging
does: two latent frames that freeze together are made good by the jump that follows. `inside` therefore counts only the
steps from one latent frame to the next inside the groups of a run's first step, `between` only those from one such
group to the next; where `inside` is small and `between` large, motion jerks. Ratios of means over the clips, 95 %
bootstrap intervals.
"""

import argparse
import itertools
import random
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from fastdit import FastDiTPipeline, zoo
from fastdit.evaluation.fidelity import psnr
from fastdit.evaluation.intervals import bootstrap
from fastdit.evaluation.motion import motion, sharpness
from fastdit.methods.base import Method
from fastdit.models.base import family_of
from fastdit.ops.temporal import frame_groups

SETTINGS = [
    *(f"noise={low}:1,alternate=false" for low in (0.83, 0.5, 0)),  # as published
    *(f"noise={low}:1" for low in (0.83, 0.7, 0.5, 0)),
    "noise=0.83:0.999",  # without the first step, which decides what is drawn
    *(f"noise={low}:1,motion_guard={guard}" for low in (0.83, 0.5) for guard in (0.2, 0.16)),
    "noise=0.5:1,alternate=false,motion_guard=0.16",
    "noise=0.83:1,group=3",
    "noise=0.83:1,group=4",
]


def draw(pipe: FastDiTPipeline, prompts: list[str], batch: int, steps: int | None) -> np.ndarray:
    """Clips (N, T, H, W, 3) uint8."""
    clips, more = [], {} if steps is None else {"num_inference_steps": steps}
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(0) for _ in part]
        clips.append(pipe(part, generator=generators, output_type="np", **more).frames)
    return (np.concatenate(clips) * 255).round().astype(np.uint8)


def seams(scale: int, groups: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The picture before each step inside a group, and from a group to the next; latent frame f ends with f * scale."""
    ends = set(itertools.accumulate(groups))
    frames = range(1, sum(groups) - 1)  # the first latent frame is one picture alone
    inside = [frame * scale for frame in frames if frame + 1 not in ends]
    return inside, [frame * scale for frame in frames if frame + 1 in ends]


def kept(merged: np.ndarray, dense: np.ndarray, places: Sequence[int] | None = None) -> str:
    """Motion of merged over dense clips (N, T, H, W, 3), of the steps that follow on given pictures only."""

    def of(clip: np.ndarray) -> float:
        return float(motion(clip) if places is None else np.mean([motion(clip[at : at + 2]) for at in places]))

    values = [[of(clip) for clip in pair] for pair in zip(merged, dense, strict=True)]
    return bootstrap(np.array(values), statistic=lambda x: float(np.divide(*x.mean(0)))).text(2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="fastdit/emoji-video")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shift", type=float, help="another flow shift than the model's own")
    parser.add_argument("--settings", nargs="*", default=SETTINGS)
    parser.add_argument("--fewer", nargs="*", type=int, default=[17, 14], help="runs of fewer steps, without merging")
    args = parser.parse_args()
    prompts = random.Random(0).sample(zoo.prompts(args.model), args.prompts)
    pipe = FastDiTPipeline.from_pretrained(args.model, [])
    pipe.set_progress_bar_config(disable=True)
    if args.shift is not None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=args.shift)
    scale, causal = pipe.vae_scale_factor_temporal, family_of(pipe.transformer).causal_frames
    dense = draw(pipe, prompts, args.batch, args.steps)
    latent, cost = (dense.shape[1] - 1) // scale + 1, pipe.report.macs_dense

    print(f"{args.model}, n = {args.prompts}, {pipe.report.steps} steps, torch {torch.__version__}")
    print(
        "| setting | MACs | frames | motion: all (95 %) | inside (95 %) | between (95 %) | sharpness | PSNR dB (95 %) |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for setting in [*args.settings, *args.fewer]:
        merging = isinstance(setting, str)
        methods = [Method.parse(f"temporal_token_merging:{setting}")] if merging else []
        pipe.set_methods(methods)
        merged = draw(pipe, prompts, args.batch, args.steps if merging else setting)
        report, group = pipe.report, methods[0].group if methods else 2
        inside, between = seams(scale, frame_groups(latent, group, causal))
        cells = [
            setting if merging else f"none, {setting} steps",
            f"{cost / report.macs_executed:.2f}x",
            f"{report.methods[methods[0].name].density:.2f}" if methods else "1.00",
            *(kept(merged, dense, places) for places in (None, inside, between)),
            f"{np.divide(*(np.mean([sharpness(clip) for clip in clips]) for clips in (merged, dense))):.2f}",
            str(bootstrap([psnr(one, other) for one, other in zip(dense, merged, strict=True)])),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
