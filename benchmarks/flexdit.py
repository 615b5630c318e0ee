"""FlexDiT at DiT-XL/2-512 geometry: measured speed-up of a forward at several timesteps against what MACs predict.

    python benchmarks/flexdit.py                            # 14 blocks, batch 2: three minutes on two cores
    python benchmarks/flexdit.py --blocks 28 --rounds 3     # the whole model: 4 GB
    python benchmarks/flexdit.py --timesteps 999 --batch 1

Real config (width 1152, 1,024 tokens) with random weights and the published layout: of 28 blocks 2 are pooled and 24
are in 4 modules, of fewer blocks as many as that share gives. Sparse grids follow the timestep by the published rate,
12 x 12 at pure noise to 20 x 20 of 32 x 32 tokens. Dense and all timesteps share their weights and take turns in one
process. `realised` = measured ratio / predicted ratio.
"""

import argparse
import functools
import statistics
import warnings

from dydit import inputs, run, runtime_of, sharing, transformer
from timing import in_turns, machine, ratio

from fastdit import FlexDiT, accelerate

SIDE = 64  # of the latents of 512 pixels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timesteps", type=int, nargs="+", default=[999, 700, 100])
    parser.add_argument("--blocks", type=int, default=14)
    parser.add_argument("--pooling", type=int, help="a fourteenth of the blocks if not given")
    parser.add_argument("--modules", type=int, help="a seventh of the blocks if not given")
    parser.add_argument("--sparse", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pooling = args.blocks // 14 if args.pooling is None else args.pooling
    modules = args.blocks // 7 if args.modules is None else args.modules
    method = FlexDiT(pooling=pooling, modules=modules, sparse=args.sparse)
    dense = transformer(args.blocks, SIDE)
    functions, handles = {"dense": functools.partial(run, dense, inputs(args.batch, SIDE))}, {}
    for timestep in args.timesteps:
        model = sharing(dense)
        handles[timestep] = accelerate(model, [method])
        functions[str(timestep)] = functools.partial(run, model, inputs(args.batch, SIDE, timestep))
    seconds = in_turns(functions, args.rounds)
    print(f"DiT-XL/2-512, {args.blocks} of 28 blocks, 1,024 tokens, batch {args.batch}, one forward; {machine()}")
    print(f"pooling={pooling}, modules={modules}, sparse={args.sparse}; {args.rounds} rounds")
    report = handles[args.timesteps[0]].report
    macs = report.macs_dense / report.evaluations
    print(f"dense: {statistics.median(seconds['dense']):.2f} s, {macs / 1e9:.0f} GMACs")
    print("| timestep | sparse grid | predicted | measured (95 %) | realised |\n|---|---|---|---|---|")
    for timestep, handle in handles.items():
        predicted = handle.report.macs_dense / handle.report.macs_executed
        middle, low, high = ratio(seconds["dense"], seconds[str(timestep)])
        (grid,) = runtime_of(handle).grids or [(SIDE // 2, SIDE // 2)]
        print(
            f"| {timestep} | {grid[0]} x {grid[1]} | {predicted:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) | "
            f"{middle / predicted:.2f} |"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
