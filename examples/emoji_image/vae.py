"""Train the small AutoencoderKL of fastdit/emoji-image: 64x64 pictures <-> 16x16 latents of 8 channels.

    python vae.py --data emoji64.npz --minutes 25

The trained captions' pictures are drawn half of the time, so that the model's own subjects come out sharpest. At the
end each latent channel is brought to mean 0 and variance 1 by folding the statistics into the two 1x1 convolutions,
so the pipeline's scaling factor is 1.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from data import chosen, load
from diffusers import AutoencoderKL
from torch.nn import functional as F


def new_vae() -> AutoencoderKL:
    blocks = (32, 64, 96)
    return AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def to_tensor(pictures) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(vae: AutoencoderKL, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + L2 + edge L1 + a light KL term; also returns the mean squared error."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    mse = F.mse_loss(y, x)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return F.l1_loss(y, x) + 2 * mse + edge + 1e-4 * kl, mse


@torch.no_grad()
def standardise(vae: AutoencoderKL, x: torch.Tensor) -> None:
    """Fold the latents' mean and deviation over `x` into quant_conv and post_quant_conv."""
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))  # (8,)
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()  # log variance of the scaled latent
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[..., 0, 0] @ mean[:, None])[:, 0]
    vae.post_quant_conv.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, x: torch.Tensor) -> float:
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(64)])
    error = (((y.clamp(-1, 1) - x) / 2) ** 2).mean((1, 2, 3))
    return (-10 * error.log10()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--output", type=Path, default=Path("emoji_vae"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    everything, own = to_tensor(load(args.data)[0]), to_tensor(chosen(args.data)[0])
    vae = new_vae().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=0.0)
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        progress = (time.monotonic() - start) / (60 * args.minutes)
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1, (step + 1) / 50) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, progress))))
            )
        half = args.batch // 2
        x = torch.cat([everything[torch.randint(len(everything), (half,))], own[torch.randint(len(own), (half,))]])
        loss, mse = loss_of(vae, x.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(
                f"step {step} {time.monotonic() - start:.0f} s loss {loss.item():.4f} mse {mse.item():.5f}", flush=True
            )
    vae.eval()
    print(f"PSNR {psnr(vae, own):.2f} dB on the trained captions, {psnr(vae, everything):.2f} dB on all")
    standardise(vae, own)
    print(f"after folding: {psnr(vae, own):.2f} dB")
    vae.save_pretrained(args.output)


if __name__ == "__main__":
    main()
