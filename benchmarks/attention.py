"""Sparse against dense attention on the published video mask: time, density, efficiency and memory.

    python benchmarks/attention.py                                   # 21 frames x 1,560 tokens, 2 heads of 128
    python benchmarks/attention.py --frames 5 --heads 1 --rounds 15
    python benchmarks/attention.py --backends sdpa flex --loudness 1 8

Dense is F.scaled_dot_product_attention as the hosts call it. All take turns in one process; the ratio is that of the
medians, with a 95 % interval. efficiency = (dense / sparse) x density: 1 if a kept pair costs what it costs in dense.
Memory is the peak of inputs, output and workspace in a fresh process. `loudness` scales the queries: at 1 the scores
are bounded beforehand, at 8 something is subtracted before exp, 40 needs a running maximum.
"""

import argparse
import functools
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from timing import in_turns, machine, ratio
from torch import Tensor
from torch.nn import functional as F

from fastdit.attention.sparse import executed_pairs, sparse_attention
from fastdit.ops.radial_mask import radial_block_mask

TOKENS, CHANNELS, DECAY = 1560, 128, 0.2  # a frame of Wan at 480 x 832, a head, the published decay


def inputs(frames: int, heads: int, loudness: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, S, H, D), normal; q scaled by `loudness`."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, frames * TOKENS, heads, CHANNELS) for _ in range(3))
    return q.mul_(loudness), k, v


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def share_of_pairs(mask: Tensor, frames: int) -> float:
    """The share of query-key pairs that the mask keeps: its density, with the last block counted as long as it is."""
    return executed_pairs(mask, 128, frames * TOKENS) / (frames * TOKENS) ** 2


def peak(which: str, frames: int, heads: int) -> float:
    """Peak megabytes of inputs, output and workspace of one call, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", which, "--frames", str(frames), "--heads", str(heads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(which: str, frames: int, heads: int) -> None:
    call = dense if which == "dense" else functools.partial(sparse_attention, backend=which)
    small, large = radial_block_mask(2, TOKENS), radial_block_mask(frames, TOKENS, decay=DECAY)
    small[0, 5] = False  # not a dense one
    call(*inputs(2, 1), *([] if which == "dense" else [small]))  # libraries and their buffers are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    call(*inputs(frames, heads), *([] if which == "dense" else [large]))
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """VmRSS or VmHWM (its peak) of this process in MB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backends", nargs="+", default=["sdpa"])
    parser.add_argument("--loudness", nargs="+", type=float, default=[1.0])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print_peak(args.peak_of, args.frames, args.heads)
        return

    mask = radial_block_mask(args.frames, TOKENS, decay=DECAY)
    density = share_of_pairs(mask, args.frames)
    functions = {"dense": functools.partial(dense, *inputs(args.frames, args.heads))}
    for backend in args.backends:
        for loudness in args.loudness:
            q, k, v = inputs(args.frames, args.heads, loudness)
            functions[f"{backend}, loudness {loudness:g}"] = functools.partial(
                sparse_attention, q, k, v, mask, backend=backend
            )
    seconds = in_turns(functions, args.rounds)
    print(
        f"{args.frames} frames x {TOKENS} tokens, {args.heads} heads of {CHANNELS}, density {density:.3f} "
        f"(at most {1 / density:.2f}x), {args.rounds} rounds; {machine()}"
    )
    peaks = {} if args.no_memory else {x: peak(x, args.frames, args.heads) for x in ["dense", *args.backends]}
    print("| | seconds | dense / sparse (95 %) | efficiency | peak MB | of dense |\n|---|---|---|---|---|---|")
    for name, own in seconds.items():
        middle, low, high = ratio(seconds["dense"], own)
        backend = name.split(",")[0]
        memory = f"{peaks[backend]:.0f} | {peaks[backend] / peaks['dense']:.2f}" if peaks else "- | -"
        speed = f"{middle:.2f} ({low:.2f} to {high:.2f}) | {middle * density:.2f}" if backend != "dense" else "1 | -"
        print(f"| {name} | {statistics.median(own):.3f} | {speed} | {memory} |")


if __name__ == "__main__":
    main()
