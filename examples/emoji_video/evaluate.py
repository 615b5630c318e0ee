"""Do clips of never trained (object, direction) pairs show the object and move as asked? Measured on raw frames.

    python evaluate.py --data emoji64.npz                      # the bundled model, dense, the 50 held-out pairs
    python evaluate.py --data emoji64.npz --sheet sheet.png    # with a strip of frames for each of 10 pairs

Seed 0 for each clip, call defaults of the model. Direction: the centre of all that is not background, its straight way
over the frames by least squares, within 45 degrees of the direction asked for. Object: the middle frame, cut to what is
not background, has the prompted picture among the 5 nearest of all 1,911 emoji by cosine of EfficientNet-Lite0
features. The same for true clips of these pairs through the VAE is the ceiling. Needs `pip install fastdit[eval]`.
"""

import argparse
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from data import DIRECTIONS, OBJECTS, SIZE, a, held_out, ink, load_pictures, objects, straight
from torch.nn import functional as F
from train import align_positions

from fastdit import FastDiTPipeline

sys.path.append(str(Path(__file__).resolve().parents[1]))
from evaluation_parts import extractor, rates, sheet


def drawn(frames: np.ndarray) -> np.ndarray:
    """Where frames (..., H, W, 3) in [0, 1] are not background."""
    return (frames < 0.9).any(-1)


def turn(frames: np.ndarray, direction: str) -> float:
    """Degrees between the centre's way over the frames (T, H, W, 3) and a direction; 180 where nothing is drawn."""
    mask = drawn(frames)
    times = np.flatnonzero(mask.any((1, 2)))
    if len(times) < 2:
        return 180.0
    centres = np.array([np.argwhere(mask[t]).mean(0)[::-1] for t in times])  # (T, 2) as x, y
    way = np.polyfit(times, centres, 1)[0]
    asked = np.array(DIRECTIONS[direction])
    cosine = way @ asked / max(np.linalg.norm(way) * np.linalg.norm(asked), 1e-9)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def cut(picture: np.ndarray) -> torch.Tensor:
    """The square about what is drawn in one picture (H, W, 3) in [0, 1], as (3, 64, 64) in [-1, 1]."""
    mask = np.pad(drawn(picture), SIZE)
    rows, columns = (np.flatnonzero(mask.sum(axis) > 1) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return torch.ones(3, SIZE, SIZE)
    half = (max(np.ptp(rows), np.ptp(columns)) + 3) // 2
    y, x = ((places[0] + places[-1] + 1) // 2 for places in (rows, columns))
    paper = np.pad(picture, ((SIZE, SIZE), (SIZE, SIZE), (0, 0)), constant_values=1.0)
    square = torch.from_numpy(paper[y - half : y + half, x - half : x + half]).movedim(-1, 0)[None].float()
    return F.interpolate(square, (SIZE, SIZE), mode="bicubic", antialias=True)[0].clamp(0, 1) * 2 - 1


def middle(clips: np.ndarray) -> torch.Tensor:
    """The cut middle frames (N, 3, 64, 64) of clips (N, T, H, W, 3)."""
    return torch.stack([cut(clip[len(clip) // 2]) for clip in clips])


def report(name: str, clips: np.ndarray, pairs: list[tuple[str, str]], features, known, targets: list[int]) -> None:
    turns = np.array([turn(clip, direction) for clip, (_, direction) in zip(clips, pairs, strict=True)])
    top1, top5 = rates(features(middle(clips)), known, targets)
    print(
        f"{name}: direction within 45 degrees {np.mean(turns <= 45):.0%} (median {np.median(turns):.0f} degrees off), "
        f"prompted object nearest of {len(known)} {top1:.0%} top 1, {top5:.0%} top 5, n = {len(pairs)}",
        flush=True,
    )


@torch.no_grad()
def truth(pipe, pairs: list[tuple[str, str]], pictures: torch.Tensor, frames: int) -> np.ndarray:
    """Rendered clips (N, T, 64, 64, 3) of the pairs, encoded and decoded."""
    rng, clips = random.Random(0), []
    for name, direction in pairs:
        x = 1 - 2 * ink(pictures[OBJECTS.index(name)], straight(rng, direction, rng.uniform(34, 44), 16, 26))[:frames]
        x = torch.cat([x, x[-1:].expand(-len(x) % 4 + 1, -1, -1, -1)])  # the VAE reads 1 + 4 n frames
        z = pipe.vae.encode(x.movedim(1, 0)[None]).latent_dist.mean[:, :, : (frames + 1) // 2]
        clips.append(pipe.vae.decode(z).sample[0].permute(1, 2, 3, 0).numpy() / 2 + 0.5)
    return np.stack(clips)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--model", default="fastdit/emoji-video")
    parser.add_argument("--recipe", action="store_true", help="with the recipe beside the model instead of dense")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()

    pairs = held_out()[: args.count]
    pictures, names = load_pictures(args.data)
    features, targets = extractor(), [names.index(name) for name, _ in pairs]
    known = features(torch.stack([cut(picture.permute(1, 2, 0).numpy()) for picture in pictures]))

    pipe = FastDiTPipeline.from_pretrained(args.model, None if args.recipe else [])
    align_positions(pipe.transformer)  # for a state between stages, at a larger patch; nothing for the shipped one
    pipe.set_progress_bar_config(disable=True)
    more = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    more = {name: value for name, value in more.items() if value is not None}
    clips = []
    for start in range(0, len(pairs), 10):
        part = [f"{a(name)} moving {direction}" for name, direction in pairs[start : start + 10]]
        generators = [torch.Generator().manual_seed(0) for _ in part]
        clips.append(pipe(part, generator=generators, output_type="np", **more).frames)  # (10, 31, 64, 64, 3)
        print(f"{start + len(part)} of {len(pairs)} clips", flush=True)
    clips = np.concatenate(clips)
    if args.sheet:
        sheet(clips[:10, ::3].reshape(-1, *clips.shape[2:]), args.sheet, columns=len(range(0, clips.shape[1], 3)))
    report("made", clips, pairs, features, known, targets)
    report(
        "true clips through the VAE",
        truth(pipe, pairs, objects(args.data), clips.shape[1]),
        pairs,
        features,
        known,
        targets,
    )
    print(pipe.report)


if __name__ == "__main__":
    main()
