"""The three on-device methods on the bundled video model: time, memory, fidelity and motion against the dense run.

    python benchmarks/on_device.py                            # the table of docs/on-device.md
    python benchmarks/on_device.py --prompts 2 --rounds 1     # a quick look

Same prompts, seeds and default call for every row. Seconds are end to end for one clip, the rows in turns in one
process; ratios are of medians with a 95 % interval. PSNR and SSIM are of raw frames against the dense clip. `motion` is
the mean absolute difference of consecutive frames over the dense clip's (ratio of means). Peak memory is that of a
fresh process that loads the model and draws one clip (VmHWM); `weights` is the part of it that streaming bounds.
"""

import argparse
import functools
import random
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from timing import in_turns, machine, ratio

from fastdit import FastDiTPipeline, Recipe, zoo
from fastdit.evaluation.fidelity import psnr, ssim
from fastdit.evaluation.intervals import bootstrap
from fastdit.evaluation.motion import motion

RECIPE = Recipe.load("on-device").methods
ROWS = {"dense": []} | {method.name: [method] for method in RECIPE} | {"on-device": list(RECIPE)}


def load(model: str, row: str) -> FastDiTPipeline:
    pipe = FastDiTPipeline.from_pretrained(model, methods=ROWS[row])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: FastDiTPipeline, prompt: str) -> np.ndarray:
    """A clip (T, H, W, 3) uint8."""
    frames = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]
    return (frames * 255).round().astype(np.uint8)


def peak_of(row: str, model: str, prompt: str) -> str:
    command = [sys.executable, "-W", "ignore", __file__, "--memory", row, prompt, "--model", model]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def kept(pairs: np.ndarray) -> float:
    """Ratio of means of (n, 2)."""
    fast, dense = pairs.mean(0)
    return float(fast / dense)


def quality(clips: Sequence[np.ndarray], dense: Sequence[np.ndarray]) -> str:
    pairs = list(zip(dense, clips, strict=True))
    if all(np.array_equal(a, b) for a, b in pairs):
        return "bit-exact | 1 | 1"
    moved = np.array([[motion(b), motion(a)] for a, b in pairs])
    return (
        f"{bootstrap([psnr(a, b) for a, b in pairs])} | {bootstrap([ssim(a, b) for a, b in pairs]).text(3)} "
        f"| {bootstrap(moved, statistic=kept).text(2)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="fastdit/emoji-video")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        row, prompt = args.memory
        draw(load(args.model, row), prompt)
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
        return
    prompts = random.Random(0).sample(zoo.prompts(args.model), args.prompts)
    pipes = {row: load(args.model, row) for row in ROWS}
    clips = {row: [draw(pipe, prompt) for prompt in prompts] for row, pipe in pipes.items()}
    reports = {row: pipe.report for row, pipe in pipes.items()}
    seconds = in_turns({row: functools.partial(draw, pipe, prompts[0]) for row, pipe in pipes.items()}, args.rounds)
    print(f"{machine()}; n = {len(prompts)} clips, {reports['dense'].steps} steps")
    print("| | steps | MACs | seconds | speed-up (95 %) | PSNR dB (95 %) | SSIM | motion | weights MiB | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    total = sum(
        p.numel() * p.element_size() for m in pipes["dense"].components.values() if isinstance(m, torch.nn.Module)
        for p in m.parameters()
    )  # fmt: skip
    for row, report in reports.items():
        middle, low, high = ratio(seconds["dense"], seconds[row])
        streaming = report.methods.get("block_streaming")
        held = streaming.peak_weights if streaming else total
        print(
            f"| {row} | {report.steps} of {reports['dense'].steps} | {report.macs_dense / report.macs_executed:.2f}x "
            f"| {statistics.median(seconds[row]):.2f} | {middle:.2f}x ({low:.2f} to {high:.2f}) "
            f"| {quality(clips[row], clips['dense'])} | {held / 2**20:.1f} | {peak_of(row, args.model, prompts[0])} |",
            flush=True,
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.disable_progress_bar()
    main()
