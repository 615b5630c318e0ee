"""Small runs for the tests of reports: pictures that a seed decides, and the same with noise on them."""

import numpy as np

from fastdit.evaluation import generate as g
from fastdit.evaluation.manifest import Item

PROMPTS = ["a <script>alert(1)</script> & | b", "snow", "rose"]
ITEMS = [Item(i, PROMPTS[i % 3] + (f" {i}" if i % 3 else ""), 100 + i) for i in range(8)]
MERGING = {"method": "token_merging", "version": 1, "density": 0.5, "scope": "block"}


def run_of(folder, name, sigma=0.0, seconds=1.0, executed=100, methods=(), frames=1, **settings):
    """A run whose pictures carry noise `sigma` and whose batches take `seconds` a sample, the first ten times that."""
    drawn = []

    def draw(items):
        samples = []
        for item in items:
            rng = np.random.default_rng(item.seed)
            clip = rng.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)[None].repeat(frames, 0)  # (T, 32, 32, 3)
            clip = np.stack([np.roll(picture, t, 1) for t, picture in enumerate(clip)])
            samples.append((clip + rng.normal(0, 1, clip.shape) * sigma).clip(0, 255).astype(np.uint8))
        drawn.append(items)
        took = seconds * len(items) * (10 if len(drawn) == 1 else 1 + 0.01 * len(drawn))
        return g.Drawn(samples, took, 100 * len(items), executed * len(items))

    given = {"model": "/home/me/models/tiny", "methods": list(methods), "call": {"num_inference_steps": 4}, **settings}
    return g.Run(name, folder / name, given, draw, {"processor": "a CPU", "torch": "2"})


def write_runs(folder, items=ITEMS, frames=1):
    """A dense run, a mild and a strong one that took turns, two samples a batch."""
    runs = [
        run_of(folder, "dense", frames=frames),
        run_of(folder, "strong", 40, 0.4, 30, [{**MERGING, "density": 0.25}], frames=frames),
        run_of(folder, "mild", 8, 0.8, 80, [MERGING], frames=frames),
    ]
    g.generate(runs, items, batch=2)
    return folder
