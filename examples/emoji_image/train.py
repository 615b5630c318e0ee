"""Train the PixArt transformer and the T5 text encoder of fastdit/emoji-image by flow matching, on a CPU.

    python train.py --data emoji64.npz --vae emoji_vae --patch 2 --minutes 60          # 64 tokens: fast, first
    python train.py --data emoji64.npz --patch 1 --minutes 90                          # 256 tokens: the shipped model

The folder `--model` holds the whole pipeline in diffusers format: averaged (EMA) weights in bf16 and `training.json`
with the step count. A later call goes on from there with fresh optimiser moments and a new warm-up; when `--patch`
differs from the folder's, the patch embedding and the output layer are exchanged and everything else is kept. Text
encoder and transformer learn together; the VAE is fixed. `kill PID` (or Ctrl-C) starts the cool-down at once.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from data import chosen
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel, T5Tokenizer
from vae import to_tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
from training_parts import Average, Schedule, optimizers, save

ZOO = Path(__file__).resolve().parents[2] / "fastdit" / "zoo" / "emoji_image"
MAX_TOKENS = 24
TEMPLATES = ("{}", "a {}", "an {}", "the {}", "{} emoji", "an emoji of a {}", "a picture of a {}", "a drawing of a {}")


def new_tokenizer(captions: list[str]) -> T5Tokenizer:
    """A unigram vocabulary learned from the captions in their templates, as a T5 tokenizer."""
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", shrinking_factor=0.75
    )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    lines = [template.format(caption) for caption in captions for template in TEMPLATES]
    tokenizer.train_from_iterator([*lines, *"abcdefghijklmnopqrstuvwxyz0123456789"], trainer)
    vocabulary = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=120)


def new_pipeline(vae: AutoencoderKL, captions: list[str], patch: int) -> PixArtAlphaPipeline:
    tokenizer = new_tokenizer(captions)
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    return PixArtAlphaPipeline(tokenizer, text_encoder, vae, new_transformer(patch), new_scheduler())


def new_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0)


def new_transformer(patch: int) -> PixArtTransformer2DModel:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=8, attention_head_dim=32, in_channels=8, out_channels=8, num_layers=10,
        cross_attention_dim=256, caption_channels=128, sample_size=16, patch_size=patch,
        use_additional_conditions=False,
    )  # fmt: skip
    nn.init.zeros_(transformer.proj_out.weight)
    for block in transformer.transformer_blocks:  # each block starts as nearly the identity
        nn.init.zeros_(block.attn2.to_out[0].weight)
    return transformer


def exchange_patch(old: PixArtTransformer2DModel, patch: int) -> PixArtTransformer2DModel:
    """The same transformer at another patch size: patch embedding and output start from the old ones' averages."""
    new = new_transformer(patch)
    state = old.state_dict()
    kernel = state["pos_embed.proj.weight"]  # (C, 8, p, p)
    state["pos_embed.proj.weight"] = kernel.sum((2, 3), keepdim=True).expand(-1, -1, patch, patch) / patch**2
    for name in ("proj_out.weight", "proj_out.bias"):
        rows = state[name].unflatten(0, (old.config.patch_size**2, 8)).mean(0)  # (8, C)
        state[name] = rows.repeat(patch**2, *[1] * (rows.ndim - 1))
    new.load_state_dict(state)
    return new


def align_positions(transformer: PixArtTransformer2DModel) -> None:
    """While training with larger patches, give each patch the mean embedding of the patch-1 rows that it covers."""
    patch, size = transformer.config.patch_size, transformer.config.sample_size
    if patch > 1:
        fine = new_transformer(1).pos_embed.pos_embed.unflatten(1, (size, size)).permute(0, 3, 1, 2)  # (1, C, 16, 16)
        transformer.pos_embed.pos_embed = F.avg_pool2d(fine, patch).flatten(2).transpose(1, 2)


def load(args, captions: list[str]) -> tuple[PixArtAlphaPipeline, int]:
    if not (args.model / "model_index.json").exists():
        return new_pipeline(AutoencoderKL.from_pretrained(args.vae), captions, args.patch), 0
    pipe = PixArtAlphaPipeline.from_pretrained(args.model, dtype=torch.float32)
    if pipe.transformer.config.patch_size != args.patch:
        pipe.transformer = exchange_patch(pipe.transformer, args.patch)
    return pipe, json.loads((args.model / "training.json").read_text())["steps"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--vae", type=Path, default=Path("emoji_vae"))
    parser.add_argument("--model", type=Path, default=ZOO)
    parser.add_argument("--patch", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--save-every", type=float, default=10, help="minutes")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    pictures, captions = chosen(args.data)
    pipe, steps = load(args, captions)
    align_positions(pipe.transformer)
    with torch.no_grad():
        latents = torch.cat([pipe.vae.encode(x).latent_dist.mean for x in to_tensor(pictures).split(64)])
    tokens = {
        text: pipe.tokenizer(text, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        for text in ["", *(template.format(caption) for caption in captions for template in TEMPLATES)]
    }
    weights = [p for m in (pipe.transformer, pipe.text_encoder) for p in m.parameters()]
    average, opts = Average(weights, args.ema), optimizers(pipe.transformer.transformer_blocks, weights, args.lr)
    transformer = torch.compile(pipe.transformer, dynamic=False) if args.compile else pipe.transformer
    print(f"{sum(w.numel() for w in weights) / 1e6:.2f} M parameters, from step {steps}, {len(captions)} captions")

    def prompt() -> tuple[int, str]:
        index = random.randrange(len(captions))
        kind = random.random()
        template = TEMPLATES[0] if kind < 0.5 else random.choice(TEMPLATES)
        return index, "" if kind > 0.9 else template.format(captions[index])

    def store() -> None:
        with average.swapped():
            save(pipe, args.model, {"steps": steps + count})

    schedule = Schedule(args.minutes, 0.3 * args.minutes)
    saved, count, total = time.monotonic(), 0, 0.0
    while not schedule.over:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["peak"] * schedule.factor(count)
        indices, texts = zip(*(prompt() for _ in range(args.batch)), strict=True)
        ids = torch.cat([tokens[text].input_ids for text in texts])
        mask = torch.cat([tokens[text].attention_mask for text in texts])
        longest = int(mask.sum(1).max())
        if not args.compile:
            ids, mask = ids[:, :longest], mask[:, :longest]
        x = latents[list(indices)]  # (B, 8, 16, 16)
        noise = torch.randn_like(x)
        sigma = torch.sigmoid(torch.randn(args.batch) * 1.2)  # (B,)
        noisy = x.lerp(noise, sigma[:, None, None, None])
        embeds = pipe.text_encoder(ids, attention_mask=mask).last_hidden_state
        velocity = transformer(
            noisy, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=sigma * 1000, return_dict=False
        )[0]
        loss = F.mse_loss(velocity, noise - x)
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for opt in opts:
            opt.step()
        count, total = count + 1, total + loss.item()
        average.update()
        if count % 50 == 0:
            print(f"step {steps + count} {schedule.seconds:.0f} s loss {total / 50:.4f}", flush=True)
            total = 0.0
        if time.monotonic() - saved > 60 * args.save_every:
            store()
            saved = time.monotonic()
    store()
    print(f"saved step {steps + count} to {args.model}: loss is not the aim, run evaluate.py")


if __name__ == "__main__":
    main()
