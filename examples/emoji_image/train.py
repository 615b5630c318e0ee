"""Train the PixArt transformer and the T5 text encoder of fastdit/emoji-image by flow matching, on a CPU.

    python train.py --data emoji64.npz --vae emoji_vae --patch 2 --minutes 60          # 64 tokens: fast, first
    python train.py --data emoji64.npz --patch 1 --minutes 90                          # 256 tokens: the shipped model

The folder `--model` holds the whole pipeline in diffusers format: averaged (EMA) weights in bf16 and `training.json`
with the step count. A later call goes on from there with fresh optimiser moments and a new warm-up; when `--patch`
differs from the folder's, the patch embedding and the output layer are exchanged and everything else is kept.
Text encoder and transformer learn together; the VAE is fixed.
"""

import argparse
import json
import random
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


def save(pipe: PixArtAlphaPipeline, averages: list[torch.Tensor], weights: list[nn.Parameter], steps: int, to: Path):
    """Write the pipeline with averaged weights in bf16, then put the live weights back."""
    live = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(weights, averages)
    pipe.to(torch.bfloat16).save_pretrained(to)
    pipe.to(torch.float32)
    with torch.no_grad():
        torch._foreach_copy_(weights, live)
    for file in (to / "model_index.json", to / "vae" / "config.json"):  # leave out where it was trained
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    (to / "training.json").write_text(json.dumps({"steps": steps}) + "\n")


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton-Schulz iterations (Jordan et al., 2024), for weight matrices."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                gradients = torch.stack([p.grad for p in params])  # (M, out, in)
                state = self.state[params[0]]
                average = state.setdefault("momentum", torch.zeros_like(gradients))
                average.lerp_(gradients, 1 - group["momentum"])
                update = orthogonal(gradients.lerp(average, group["momentum"]))
                scale = 0.2 * max(update.shape[-2:]) ** 0.5  # the RMS of an Adam step
                for p, u in zip(params, update, strict=True):
                    p.add_(u, alpha=-group["lr"] * scale)


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest semi-orthogonal matrix of each (M, out, in): a quintic Newton-Schulz iteration."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(pipe: PixArtAlphaPipeline, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for p in pipe.transformer.transformer_blocks.parameters() if p.ndim == 2 and min(p.shape) >= 64]
    known = {id(p) for p in matrices}
    rest = [p for m in (pipe.transformer, pipe.text_encoder) for p in m.parameters() if id(p) not in known]
    return [
        Muon([{"params": matrices, "peak": lr}], lr=lr),
        torch.optim.AdamW([{"params": rest, "peak": lr}], lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


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
    averages = [w.detach().clone() for w in weights]
    opts = optimizers(pipe, args.lr)
    transformer = torch.compile(pipe.transformer, dynamic=False) if args.compile else pipe.transformer
    print(f"{sum(w.numel() for w in weights) / 1e6:.2f} M parameters, from step {steps}, {len(captions)} captions")

    def prompt() -> tuple[int, str]:
        index = random.randrange(len(captions))
        kind = random.random()
        template = TEMPLATES[0] if kind < 0.5 else random.choice(TEMPLATES)
        return index, "" if kind > 0.9 else template.format(captions[index])

    start = saved = time.monotonic()
    count, total, progress = 0, 0.0, 0.0
    while progress < 1:
        progress = (time.monotonic() - start) / (60 * args.minutes)
        factor = min(1.0, (count + 1) / 100) * min(1.0, max(0.02, (1 - progress) / 0.3))  # warm up, then cool down
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["peak"] * factor
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
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(args.ema, (1 + count) / (10 + count)))
        if count % 50 == 0:
            print(f"step {steps + count} {time.monotonic() - start:.0f} s loss {total / 50:.4f}", flush=True)
            total = 0.0
        if time.monotonic() - saved > 60 * args.save_every or progress >= 1:
            save(pipe, averages, weights, steps + count, args.model)
            saved = time.monotonic()
    print(f"saved step {steps + count} to {args.model}: loss is not the aim, run evaluate.py")


if __name__ == "__main__":
    main()
