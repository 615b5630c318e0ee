"""The bundled model: what each setting saves and costs. Its default recipe is chosen from this table.

    python benchmarks/emoji_frontier.py --rounds 9 --prompts 100

Speed: one picture, 20 steps with guidance, all settings in turns in one process. Quality: PSNR and SSIM to the dense
picture from the same noise (seed 0), n prompts, 95 % bootstrap interval of the mean; and whether the prompted picture
is among the 5 nearest training pictures (EfficientNet-Lite0 features) where --data is given.
"""

import argparse
import random
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from timing import in_turns, machine, ratio

from fastdit import FastDiTPipeline, Recipe, zoo
from fastdit.evaluation.fidelity import psnr, ssim
from fastdit.methods.base import Method

MODEL = "fastdit/emoji-image"
SETTINGS = [
    "token_merging:density=0.75",
    "token_merging:density=0.5",
    "token_merging:density=0.5,layers=0.2:1",
    "token_merging:density=linear:0.25:0.75",
    "token_merging:density=linear:0.75:0.25",
    "token_merging:density=0.5,reducer=pool",
    "token_merging:density=0.5,reducer=prune",
    "token_merging:density=0.75,scope=block",
    "token_merging:density=0.5,scope=block",
    "token_merging:density=linear:0.5:1,scope=block",
    "token_merging:density=linear:1:0.5,scope=block",
]


def load(setting: str | None):
    """A pipeline of its own per setting, with a stopwatch on its transformer."""
    methods = () if setting is None else (Method.parse(setting),)
    call = Recipe.load(zoo.folder_of(MODEL) / "fastdit.json").call
    pipe = FastDiTPipeline.from_pretrained(MODEL, Recipe(methods, call))
    pipe.set_progress_bar_config(disable=True)
    pipe.stopwatch = []
    pipe.transformer.register_forward_pre_hook(lambda *_: pipe.stopwatch.append(-time.perf_counter()))
    pipe.transformer.register_forward_hook(lambda *_: pipe.stopwatch.append(time.perf_counter()))
    return pipe


def draw(pipe, prompts: list[str]) -> np.ndarray:
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    return pipe(prompts, generator=generators, output_type="np").images


def interval(values: list[float]) -> str:
    rng = random.Random(0)
    means = sorted(statistics.mean(rng.choices(values, k=len(values))) for _ in range(1000))
    return f"{statistics.mean(values):.1f} ({means[25]:.1f} to {means[974]:.1f})"


def retrieval(data: Path, prompts: list[str]):
    """A function from pictures (n, H, W, 3) to the top-5 rate, or None without data."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "emoji_image"))
    from data import load as load_data
    from evaluate import extractor, rates
    from vae import to_tensor

    features = extractor()
    pictures, captions = load_data(data)
    known, targets = features(to_tensor(pictures)), [captions.index(prompt) for prompt in prompts]
    return lambda images: rates(features(torch.from_numpy(images).movedim(-1, 1).float() * 2 - 1), known, targets)[1]


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    prompts = random.Random(0).sample(zoo.prompts(MODEL), args.prompts)
    top5 = retrieval(args.data, prompts) if args.data else None

    pipes = {"dense": load(None), **{setting: load(setting) for setting in SETTINGS}}
    inside: dict[str, list[float]] = {name: [] for name in pipes}

    def timed(name: str) -> None:
        pipes[name].stopwatch.clear()
        draw(pipes[name], ["red apple"])
        inside[name].append(sum(pipes[name].stopwatch))

    seconds = in_turns({name: lambda name=name: timed(name) for name in pipes}, args.rounds)
    inside = {name: values[1:] for name, values in inside.items()}  # without the warm-up
    parts = [prompts[i : i + 25] for i in range(0, len(prompts), 25)]
    pictures = {name: np.concatenate([draw(pipe, part) for part in parts]) for name, pipe in pipes.items()}
    print(f"{MODEL}, 20 steps with guidance, one picture; {machine()}; quality n = {len(prompts)}")
    print(f"dense: {statistics.median(seconds['dense']):.2f} s end to end"
          + (f", top 5 {top5(pictures['dense']):.0%}" if top5 else ""))  # fmt: skip
    print("| setting | predicted | transformer | end to end (95 %) | PSNR dB (95 %) | SSIM | top 5 |")
    print("|---|---|---|---|---|---|---|")
    for name in SETTINGS:
        report = pipes[name].report
        middle, low, high = ratio(seconds["dense"], seconds[name])
        pairs = list(zip(pictures["dense"], pictures[name], strict=True))
        print(
            f"| {name.removeprefix('token_merging:')} | {report.macs_dense / report.macs_executed:.2f}x "
            f"| {ratio(inside['dense'], inside[name])[0]:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) "
            f"| {interval([psnr(a, b) for a, b in pairs])} | {statistics.mean(ssim(a, b) for a, b in pairs):.3f} "
            f"| {f'{top5(pictures[name]):.0%}' if top5 else '-'} |"
        )


if __name__ == "__main__":
    main()
