"""TokenMerging on PixArt-XL/2 geometry: measured speed-up against the one that MACs predict.

    python benchmarks/token_merging.py --pixels 1024 --rounds 4
    python benchmarks/token_merging.py --pixels 512 --rounds 6
    python benchmarks/token_merging.py --neutral            # the wrapper alone, at density 1

Real config with 8 of its 28 blocks and random weights, batch 2 (guidance), two steps a run, so that
`reuse_steps` counts as it does in use. Dense and all variants take turns in one process.
`realised` = measured ratio / predicted ratio.
"""

import argparse
import functools
import statistics
import time
import warnings

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from timing import in_turns, machine, ratio

from fastdit import TokenMerging, accelerate
from fastdit.ops.reducers import REDUCERS

VARIANTS = {
    "default (bipartite)": {},
    "bipartite, matched every step": {"reuse_steps": 1},
    "bipartite, matched in every block": {"reuse_steps": 1, "reuse_blocks": 1},
    "pool": {"reducer": "pool"},
    "prune": {"reducer": "prune"},
    "default, scope=block": {"scope": "block"},
    "pool, scope=block": {"reducer": "pool", "scope": "block"},
    "default, tokens=kv": {"tokens": "kv"},
}


def pipeline(blocks: int, weights: dict[str, torch.Tensor] | None = None) -> PixArtAlphaPipeline:
    """A pipeline without text encoder; `weights` are shared with another one instead of copied."""
    torch.manual_seed(0)
    with torch.device("cpu" if weights is None else "meta"):
        transformer = PixArtTransformer2DModel(
            sample_size=128, caption_channels=4096, use_additional_conditions=False, num_layers=blocks
        ).eval()
    if weights is not None:
        transformer.load_state_dict(weights, assign=True, strict=False)
        transformer.pos_embed.pos_embed = weights["pos_embed.pos_embed"]  # a buffer that is not saved
    vae = AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    pipe = PixArtAlphaPipeline(None, None, vae, transformer, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: PixArtAlphaPipeline, pixels: int, steps: int, guidance: float = 4.5) -> torch.Tensor:
    embeds, mask = torch.randn(1, 120, 4096, generator=torch.Generator().manual_seed(1)), torch.ones(1, 120)
    return pipe(
        prompt=None, negative_prompt=None, prompt_embeds=embeds, prompt_attention_mask=mask,
        negative_prompt_embeds=embeds * 0, negative_prompt_attention_mask=mask, height=pixels, width=pixels,
        num_inference_steps=steps, guidance_scale=guidance, output_type="latent", use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def weights_of(pipe: PixArtAlphaPipeline) -> dict[str, torch.Tensor]:
    return {**pipe.transformer.state_dict(), "pos_embed.pos_embed": pipe.transformer.pos_embed.pos_embed}


def variants(pixels: int, rounds: int, blocks: int, only: list[str]) -> None:
    dense = pipeline(blocks)
    functions, handles = {"dense": lambda: run(dense, pixels, 2)}, {}
    for name, options in VARIANTS.items():
        if only and not any(word in name for word in only):
            continue
        pipe = pipeline(blocks, weights_of(dense))
        handles[name] = accelerate(pipe, [TokenMerging(**options)])
        functions[name] = functools.partial(run, pipe, pixels, 2)
    seconds = in_turns(functions, rounds)
    print(
        f"PixArt-XL/2, {blocks} blocks, {pixels} px = {(pixels // 16) ** 2} tokens, batch 2, density 0.5; {machine()}"
    )
    print(f"dense: {statistics.median(seconds['dense']):.2f} s for 2 steps, {rounds} rounds")
    print("| variant | predicted | measured (95 %) | realised |\n|---|---|---|---|")
    for name, handle in handles.items():
        predicted = handle.report.macs_dense / handle.report.macs_executed
        middle, low, high = ratio(seconds["dense"], seconds[name])
        print(f"| {name} | {predicted:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) | {middle / predicted:.2f} |")


def matching(pixels: int) -> None:
    side = pixels // 16
    metric = torch.randn(2, side * side, 1152)
    print("matching alone, batch 2, density 0.5, median of 5:")
    for name, reducer in REDUCERS.items():
        keep, seconds = reducer.rows(0.5, (1, side, side)), []
        for _ in range(6):
            began = time.perf_counter()
            reducer.find(metric, keep, (1, side, side))
            seconds.append(time.perf_counter() - began)
        print(f"  {name}: {1000 * sorted(seconds[1:])[2]:.1f} ms")


def neutral(rounds: int) -> None:
    plain = pipeline(4)
    wrapped = pipeline(4, weights_of(plain))
    accelerate(wrapped, [TokenMerging(density=1)])
    functions = {
        name: functools.partial(run, pipe, 512, 2, guidance=1.0)
        for name, pipe in (("plain", plain), ("wrapped", wrapped))
    }
    seconds = in_turns(functions, rounds, warmup=2)
    middle, low, high = ratio(seconds["wrapped"], seconds["plain"])
    print(f"neutral wrapper at 1,024 tokens, width 1152, 4 blocks, 2 steps, {rounds} pairs; {machine()}")
    print(f"wrapped / plain = {middle:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--neutral", action="store_true")
    args = parser.parse_args()
    if args.neutral:
        neutral(max(args.rounds, 30))
    else:
        matching(args.pixels)
        variants(args.pixels, args.rounds, args.blocks, args.only)
