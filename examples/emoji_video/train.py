"""Train the Wan transformer and the UMT5 text encoder of fastdit/emoji-video by flow matching, on a CPU.

    python data.py --data emoji64.npz --vae emoji_video_vae --clips emoji_clips --parts 4           # latents, once
    python train.py --clips emoji_clips --vae emoji_video_vae --patch 4 --frames 4 --minutes 60     # 64 tokens a clip
    python train.py --clips emoji_clips --patch 4 --frames 8 16 --minutes 60
    python train.py --clips emoji_clips --patch 2 --frames 16 --minutes 90       # 1,024 tokens: the shipped model
    python train.py --clips emoji_clips --patch 2 --frames 1 1 4 16 --minutes 90 # many more drawings a step

The folder `--model` holds the whole pipeline in diffusers format: averaged (EMA) weights in bf16 and `training.json`
with what was done. A later call goes on from there with fresh optimiser moments and a new warm-up; when `--patch`
differs from the folder's, the patch embedding and the output layer are exchanged and everything else is kept. Clips are
cut to their first `--frames` latent frames. `kill PID` (or Ctrl-C) starts the cool-down at once, saves and ends.
Text encoder and transformer learn together; the VAE is fixed.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from data import captions
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from torch.nn import functional as F
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

sys.path.append(str(Path(__file__).resolve().parents[1]))
from training_parts import Average, Schedule, optimizers, save

ZOO = Path(__file__).resolve().parents[2] / "fastdit" / "zoo" / "emoji_video"
FINE = 2  # the shipped model's patch: 8x8 tokens a frame
SHIFT = 3.0  # towards noise: neighbouring frames tell the same, so a clip shows through more noise than a picture
PADDED = (32, 32, 32, 32, 32, 32, 32, 32, 128, 512)  # lengths of the text; 512 is WanPipeline's default
TEXT_TOKENS = 2048  # of a step: longer padding only where few clips share the step


def new_tokenizer() -> T5Tokenizer:
    """One token for each word of the captions; single characters, much dearer, spell all other words."""
    words = sorted({f"▁{word}" for caption in captions() for word in [*caption.split(), "and"]})
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789-"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0)]
    vocabulary = special + [(word, -1.0) for word in words] + [(letter, -20.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def new_pipeline(vae: AutoencoderKLWan, patch: int) -> WanPipeline:
    tokenizer = new_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=SHIFT)
    return WanPipeline(tokenizer, text_encoder, vae, scheduler, new_transformer(patch))


def new_transformer(patch: int) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        patch_size=(1, patch, patch), num_attention_heads=6, attention_head_dim=32, in_channels=8, out_channels=8,
        text_dim=128, freq_dim=128, ffn_dim=768, num_layers=8, cross_attn_norm=True, rope_max_seq_len=256,
    )  # fmt: skip
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    for block in transformer.blocks:  # each block starts as nearly the identity
        nn.init.zeros_(block.attn2.to_out[0].weight)
    return transformer


def exchange_patch(old: WanTransformer3DModel, patch: int) -> WanTransformer3DModel:
    """The same transformer at another patch size: patch embedding and output start from the old ones' averages."""
    new, state, before = new_transformer(patch), old.state_dict(), old.config.patch_size[1]
    kernel = state["patch_embedding.weight"]  # (C, 8, 1, p, p)
    state["patch_embedding.weight"] = kernel.sum((3, 4), keepdim=True).expand(-1, -1, 1, patch, patch) / patch**2
    for name in ("proj_out.weight", "proj_out.bias"):
        rows = state[name].unflatten(0, (before**2, 8)).mean(0)  # (8, C)
        state[name] = rows.repeat(patch**2, *[1] * (rows.ndim - 1))
    new.load_state_dict(state)
    return new


def align_positions(transformer: WanTransformer3DModel) -> None:
    """While training with larger patches, turn each patch by its centre's place in the grid of the shipped patch."""
    ratio, rope = transformer.config.patch_size[1] / FINE, transformer.rope
    places = torch.arange(rope.max_seq_len, dtype=torch.float64) * ratio + (ratio - 1) / 2
    for dim, start in ((rope.h_dim, rope.t_dim), (rope.w_dim, rope.t_dim + rope.h_dim)):
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = (places[:, None] * frequencies).repeat_interleave(2, 1)  # (places, dim)
        rope.freqs_cos[:, start : start + dim] = angles.cos()
        rope.freqs_sin[:, start : start + dim] = angles.sin()


def load(args: argparse.Namespace) -> tuple[WanPipeline, dict]:
    if not (args.model / "model_index.json").exists():
        return new_pipeline(AutoencoderKLWan.from_pretrained(args.vae), args.patch), {"steps": 0, "stages": []}
    pipe = WanPipeline.from_pretrained(args.model, dtype=torch.float32)
    if pipe.transformer.config.patch_size[1] != args.patch:
        pipe.transformer = exchange_patch(pipe.transformer, args.patch)
    return pipe, json.loads((args.model / "training.json").read_text())


class Clips:
    """All parts that data.py has written so far."""

    def __init__(self, folder: Path):
        self.folder, self.parts, self.known = folder, [], set()
        self.refresh()

    def refresh(self) -> None:
        for file in sorted(set(self.folder.glob("*.pt")) - self.known):
            self.known.add(file)
            part = torch.load(file)
            self.parts += zip(part["latents"], part["captions"], strict=True)

    def draw(self, count: int, frames: int) -> tuple[torch.Tensor, list[str]]:
        """Latents (B, 8, F, 16, 16) and captions; a tenth has none, a quarter goes without the article in front."""
        latents, texts = zip(*random.choices(self.parts, k=count), strict=True)
        texts = [text.split(" ", 1)[1] if random.random() < 0.25 else text for text in texts]
        texts = [text if random.random() < 0.9 else "" for text in texts]
        return torch.stack([z[:, :frames].float() for z in latents]), texts


def embed(pipe: WanPipeline, texts: list[str]) -> torch.Tensor:
    """What WanPipeline gives the transformer: encoder states, zeros from the text's end to a length (B, L, 128)."""
    tokens = pipe.tokenizer(texts, padding=True, return_tensors="pt")
    states = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    states = states * tokens.attention_mask[..., None]
    padded = random.choice([length for length in PADDED if length == min(PADDED) or length * len(texts) <= TEXT_TOKENS])
    return F.pad(states, (0, 0, 0, padded - states.shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=Path, default=Path("emoji_clips"))
    parser.add_argument("--vae", type=Path, default=Path("emoji_video_vae"))
    parser.add_argument("--model", type=Path, default=ZOO)
    parser.add_argument("--patch", type=int, default=FINE)
    parser.add_argument("--frames", type=int, nargs="+", default=[16], help="latent frames; a step takes one of them")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of video in a step")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cool-minutes", type=float, help="default: 30 %% of --minutes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--save-every", type=float, default=10, help="minutes")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    clips, (pipe, training) = Clips(args.clips), load(args)
    transformer = pipe.transformer.train()
    align_positions(transformer)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # a graph for each number of frames and of text tokens
        transformer.compile_repeated_blocks(dynamic=False)
    weights = [p for m in (transformer, pipe.text_encoder) for p in m.parameters()]
    average, opts = Average(weights, args.ema), optimizers(transformer.blocks, weights, args.lr)
    stage = {"patch": args.patch, "frames": args.frames, "tokens": args.tokens, "steps": 0, "minutes": 0.0}
    print(f"{sum(w.numel() for w in weights) / 1e6:.2f} M parameters, from step {training['steps']}", flush=True)

    def store() -> None:
        stage["minutes"] = round(schedule.seconds / 60, 1)
        steps, stages = training["steps"] + stage["steps"], [*training["stages"], stage]
        with average.swapped():
            save(pipe, args.model, {"steps": steps, "stages": stages}, captions())
        print(f"saved step {steps} to {args.model}, {len(clips.parts)} clips", flush=True)
        clips.refresh()

    schedule = Schedule(args.minutes, args.cool_minutes or 0.3 * args.minutes)
    saved, losses = time.monotonic(), []
    while not schedule.over:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["peak"] * schedule.factor(stage["steps"])
        frames = random.choice(args.frames)
        count = max(1, args.tokens // (frames * (16 // args.patch) ** 2))
        x, texts = clips.draw(count, frames)
        noise = torch.randn_like(x)
        sigma = torch.sigmoid(torch.randn(count) * 1.2)  # (B,)
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        noisy = x.lerp(noise, sigma[:, None, None, None, None])
        velocity = transformer(noisy, sigma * 1000, embed(pipe, texts), return_dict=False)[0]
        loss = F.mse_loss(velocity, noise - x)
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for opt in opts:
            opt.step()
        average.update()
        stage["steps"] += 1
        losses.append(loss.item())
        if stage["steps"] % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {training['steps'] + stage['steps']} {schedule.seconds:.0f} s loss {mean:.4f}", flush=True)
        if time.monotonic() - saved > 60 * args.save_every:
            store()
            saved = time.monotonic()
    store()
    print("the loss is not the aim: run evaluate.py")


if __name__ == "__main__":
    main()
