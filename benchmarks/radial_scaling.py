"""How time grows with the length of a video: dense and sparse attention, one head, 1,560 tokens a frame.

    python benchmarks/radial_scaling.py --plot radial_scaling.png
    python benchmarks/radial_scaling.py --frames 5 10 21 --rounds 9

Exponents are slopes of log time over log tokens from 21 frames on (least squares); dense attention has 2, the mask's
own pairs about 1.41.
"""

import argparse
import functools
import math
import statistics

import torch
from timing import in_turns, machine, ratio

from attention import DECAY, TOKENS, dense, inputs, share_of_pairs
from fastdit.attention.sparse import sparse_attention
from fastdit.ops.radial_mask import radial_block_mask

LONG = 21  # frames: from there on for the exponents


def measure(frames: int, rounds: int, backend: str) -> dict[str, float]:
    """One row: medians, ratio with its interval, density and efficiency."""
    mask, (q, k, v) = radial_block_mask(frames, TOKENS, decay=DECAY), inputs(frames, 1)
    functions = {
        "dense": functools.partial(dense, q, k, v),
        "sparse": functools.partial(sparse_attention, q, k, v, mask, backend=backend),
    }
    print(f"{frames} frames:", flush=True)
    seconds = in_turns(functions, rounds)
    middle, low, high = ratio(seconds["dense"], seconds["sparse"])
    density = share_of_pairs(mask, frames)
    return {
        "frames": frames,
        **{name: statistics.median(own) for name, own in seconds.items()},
        **{"ratio": middle, "low": low, "high": high, "density": density, "efficiency": middle * density},
    }


def exponent(rows: list[dict[str, float]], value: str) -> float:
    """Slope of log `value` over log frames, from LONG frames on."""
    points = [(math.log(row["frames"]), math.log(row[value])) for row in rows if row["frames"] >= LONG]
    if len(points) < 2:
        return math.nan
    x, y = (statistics.mean(axis) for axis in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def plot(rows: list[dict[str, float]], path: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, shares) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 6), height_ratios=[2, 1], layout="tight")
    frames = [row["frames"] for row in rows]
    for name in ("dense", "sparse", "ideal"):
        ideal = name == "ideal"
        label = f"dense x density, whose pairs grow by {exponent(rows, 'pairs'):.2f}" if ideal else name
        label += "" if ideal else f", exponent {exponent(rows, name):.2f}"
        times.plot(frames, [row[name] for row in rows], "k:" if ideal else "o-", label=label)
    times.set(xscale="log", yscale="log", ylabel="seconds", title=title)
    times.legend()
    errors = [[r[e] * r["density"] for r in rows] for e in ("low", "high")]
    middle = [row["efficiency"] for row in rows]
    spread = [[m - e for m, e in zip(middle, errors[0])], [e - m for m, e in zip(middle, errors[1])]]
    shares.errorbar(frames, middle, yerr=spread, fmt="o-", label="efficiency")
    shares.plot(frames, [row["density"] for row in rows], "s--", label="density")
    shares.axhline(0.75, color="gray", linewidth=0.8)
    shares.set(xlabel=f"latent frames of {TOKENS} tokens", ylim=(0, None), xticks=frames, xticklabels=frames)
    shares.minorticks_off()
    shares.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", nargs="+", type=int, default=[5, 10, 21, 41, 81])
    parser.add_argument("--rounds", type=int, default=5, help="for 21 frames; more for shorter videos, 3 for longer")
    parser.add_argument("--backend", default="sdpa")
    parser.add_argument("--plot")
    args = parser.parse_args()
    rows = []
    for frames in sorted(args.frames):
        rounds = args.rounds * max(1, round(LONG / frames)) if frames <= LONG else min(3, args.rounds)
        rows.append(measure(frames, rounds, args.backend))
        rows[-1]["ideal"] = rows[-1]["dense"] * rows[-1]["density"]
        rows[-1]["pairs"] = rows[-1]["density"] * frames**2
    title = f"one head of 128, {args.backend}, {torch.get_num_threads()} threads"
    print(f"{title}; {machine()}")
    print("| frames | tokens | dense s | sparse s | dense / sparse (95 %) | density | efficiency |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['frames']} | {row['frames'] * TOKENS:,} | {row['dense']:.3f} | {row['sparse']:.3f} "
            f"| {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['density']:.3f} "
            f"| {row['efficiency']:.2f} |"
        )
    slopes = {name: exponent(rows, name) for name in ("dense", "sparse", "pairs")}
    print(f"exponent from {LONG} frames on: " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
    if args.plot:
        plot(rows, args.plot, title)


if __name__ == "__main__":
    main()
