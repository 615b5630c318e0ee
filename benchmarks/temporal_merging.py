"""TemporalTokenMerging in a Wan transformer: measured speed-up of a merged step against the one that MACs predict.

    python benchmarks/temporal_merging.py                                # 21 latent frames of 240 x 416 pixels
    python benchmarks/temporal_merging.py --height 480 --width 832       # the usual size
    python benchmarks/temporal_merging.py --only group=4 cross_attention=true --rounds 9

Wan2.1-1.3B's real config with few of its 30 blocks and random weights: one step without guidance, at a noise where
frames are merged. Dense and merged take turns in one process. `realised` = measured ratio / predicted ratio. Patch
embedding, text and output layers are in both. How much motion is left is measured by on_device_motion.py.
"""

import argparse
import functools
import statistics
import warnings

from radial_attention import pipeline, run
from timing import in_turns, machine, ratio

from fastdit import accelerate
from fastdit.methods.base import Method


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=81, help="pictures, not latent frames")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["group=2", "group=2,cross_attention=true"])
    args = parser.parse_args()
    size = args.frames, args.height, args.width
    dense = pipeline(args.blocks)
    functions, handles = {"dense": functools.partial(run, dense, *size)}, {}
    for name in args.only:
        pipe = pipeline(args.blocks, dense.transformer.state_dict())
        handles[name] = accelerate(pipe, [Method.parse(f"temporal_token_merging:{name}")])
        functions[name] = functools.partial(run, pipe, *size)
    seconds = in_turns(functions, args.rounds)
    print(f"Wan2.1-1.3B, {args.blocks} of 30 blocks, {args.height} x {args.width}, {args.frames} frames; {machine()}")
    print(f"dense: {statistics.median(seconds['dense']):.2f} s a step, {args.rounds} rounds")
    print("| TemporalTokenMerging | frames attended | predicted | measured (95 %) | realised |\n|---|---|---|---|---|")
    for name, handle in handles.items():
        predicted = handle.report.macs_dense / handle.report.macs_executed
        middle, low, high = ratio(seconds["dense"], seconds[name])
        density = handle.report.methods["temporal_token_merging"].density
        print(
            f"| {name} | {density:.3f} | {predicted:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) | "
            f"{middle / predicted:.2f} |"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
