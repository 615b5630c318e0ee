"""Frechet distance at Inception's 2048 dimensions: ours against clean-fid's, from the same mean and covariance.

    python benchmarks/frechet.py --rounds 5
    python benchmarks/frechet.py --samples 500          # fewer samples than dimensions: singular matrices
    python benchmarks/frechet.py --dimensions 256       # a quick look

Both take turns in one process. clean-fid runs with scipy below 1.18 only; without it there are our seconds alone.
"""

import argparse
import contextlib
import functools
import io
import statistics
from dataclasses import replace

import numpy as np
from timing import in_turns, machine, ratio

from fastdit.evaluation.frechet import Statistics, frechet_distance


def features(samples: int, dimensions: int, seed: int) -> np.ndarray:
    """Rows (n, D) float32 whose variances fall by a factor of a million, as a network's do."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -3, dimensions)
    mix = np.linalg.qr(np.random.default_rng(99).standard_normal((dimensions, dimensions)))[0]
    return ((rng.standard_normal((samples, dimensions)) * scale * (1 + 0.1 * seed) + 0.05 * seed) @ mix).astype(
        np.float32
    )


def clean_fids(a: Statistics, b: Statistics) -> float:
    """clean-fid's arithmetic; it prints where a product is singular."""
    from cleanfid.fid import frechet_distance as theirs

    with contextlib.redirect_stdout(io.StringIO()):
        return float(theirs(a.mean, a.covariance, b.mean, b.covariance))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--dimensions", type=int, default=2048)
    args = parser.parse_args()

    a, b = (Statistics.of(features(args.samples, args.dimensions, seed), "benchmark") for seed in (0, 1))
    files = [replace(s, features=None) for s in (a, b)]  # as loaded from a file: no features to save work with
    functions = {
        "clean-fid": functools.partial(clean_fids, *files),
        "fastdit": functools.partial(frechet_distance, *files),
    }
    if args.samples < args.dimensions:
        functions["fastdit, with features"] = functools.partial(frechet_distance, a, b)
    try:
        values = {name: function() for name, function in functions.items()}
    except (ImportError, TypeError, AttributeError) as error:
        print(f"clean-fid does not run here ({error})")
        del functions["clean-fid"]
        values = {name: function() for name, function in functions.items()}
    seconds = in_turns(functions, args.rounds, warmup=0)  # the values above were the warm-up
    where = machine().removesuffix(", fp32") + ", float64"
    print(f"Frechet distance, {args.dimensions} dimensions, {args.samples} samples each, {args.rounds} rounds; {where}")
    print("| | value | seconds, median | clean-fid / this (95 %) |\n|---|---|---|---|")
    for name, found in seconds.items():
        faster = ""
        if "clean-fid" in seconds and name != "clean-fid":
            middle, low, high = ratio(seconds["clean-fid"], found)
            faster = f"{middle:.1f}x ({low:.1f} to {high:.1f})"
        print(f"| {name} | {values[name]:.6f} | {statistics.median(found):.2f} | {faster} |")


if __name__ == "__main__":
    main()
