"""RadialAttention in a Wan transformer: measured speed-up of a step against the one that MACs predict.

    python benchmarks/radial_attention.py                          # Wan2.1-1.3B geometry, 480 x 832, 81 frames
    python benchmarks/radial_attention.py --frames 41 --rounds 5   # pictures, not latent frames

Real config with one of its 30 blocks and random weights: one step without guidance, the mask at the published decay of
0.2 in every block, so this is a sparse step; a run's first steps are dense. Dense and sparse take turns in one process.
`realised` = measured ratio / predicted ratio. Patch embedding, text and output layers are in both.
"""

import argparse
import functools
import statistics
import warnings

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from timing import in_turns, machine, ratio

from fastdit import RadialAttention, accelerate

VARIANTS = {
    "decay=0.2": RadialAttention(decay=0.2, dense_share=0, dense_layers=0),
    "decay=1": RadialAttention(dense_share=0, dense_layers=0),
    "decay=0.2, token_order=tile": RadialAttention(decay=0.2, dense_share=0, dense_layers=0, token_order="tile"),
}


def pipeline(blocks: int, weights: dict[str, torch.Tensor] | None = None) -> WanPipeline:
    """Wan2.1-1.3B without text encoder and VAE; `weights` are shared with another pipeline instead of copied."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=blocks).eval()
    if weights is not None:
        transformer.load_state_dict(weights, assign=True)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = WanPipeline(None, None, None, scheduler, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: WanPipeline, frames: int, height: int = 480, width: int = 832) -> None:
    embeds = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1))
    pipe(
        prompt_embeds=embeds, height=height, width=width, num_frames=frames, num_inference_steps=1, guidance_scale=1.0,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["decay=0.2"])
    args = parser.parse_args()
    dense = pipeline(args.blocks)
    functions, handles = {"dense": functools.partial(run, dense, args.frames)}, {}
    for name in args.only:
        pipe = pipeline(args.blocks, dense.transformer.state_dict())
        handles[name] = accelerate(pipe, [VARIANTS[name]])
        functions[name] = functools.partial(run, pipe, args.frames)
    seconds = in_turns(functions, args.rounds)
    print(f"Wan2.1-1.3B, {args.blocks} of 30 blocks, 480 x 832, {args.frames} frames; {machine()}")
    print(f"dense: {statistics.median(seconds['dense']):.2f} s a step, {args.rounds} rounds")
    print("| RadialAttention | density | predicted | measured (95 %) | realised |\n|---|---|---|---|---|")
    for name, handle in handles.items():
        predicted = handle.report.macs_dense / handle.report.macs_executed
        middle, low, high = ratio(seconds["dense"], seconds[name])
        density = handle.report.methods["radial_attention"].density
        print(
            f"| {name} | {density:.3f} | {predicted:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) | "
            f"{middle / predicted:.2f} |"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
