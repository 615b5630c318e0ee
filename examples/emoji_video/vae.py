"""Train the small AutoencoderKLWan of fastdit/emoji-video: 31 frames of 64x64 <-> 16 latents of 8 x 16x16.

    python vae.py --data emoji64.npz --minutes 25

Space is pressed 4x (patches of 2 pixels, then one halving), time 2x in that halving. The first 60 % of the time goes
to single frames, where a causal convolution is a plane one, nearly twice as fast; the kernels' earlier frames start at
zero, so that a clip begins as its frames one by one. Then cuts of 5 to 17 frames. At the end the mean and deviation of
each latent channel over whole clips go to `latents_mean` and `latents_std` of the config.
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path
from types import MethodType

import torch
from data import FRAMES, clip, load_pictures, objects
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    patchify,
    unpatchify,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))
from training_parts import optimizers


def new_vae() -> AutoencoderKLWan:
    """Patches of 2 leave a quarter of the places to the first convolutions: three times as fast as without."""
    vae = AutoencoderKLWan(
        base_dim=32, z_dim=8, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], patch_size=2,
        in_channels=12, out_channels=12, latents_mean=[0.0] * 8, latents_std=[1.0] * 8, scale_factor_temporal=2,
        scale_factor_spatial=4,
    )  # fmt: skip
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, WanCausalConv3d) and layer.kernel_size == (3, 3, 3):
                layer.weight[:, :, :2] = 0  # earlier frames
            elif isinstance(layer, WanResample):  # halve time by the mean of two frames, double it by repeating
                weight = torch.zeros_like(layer.time_conv.weight[..., 0, 0])  # (out, in, 3)
                if layer.mode == "downsample3d":
                    weight[:, :, 1:] = torch.eye(layer.dim)[..., None] / 2
                else:
                    weight[:, :, 2] = torch.eye(layer.dim).repeat(2, 1)
                layer.time_conv.weight.copy_(weight[..., None, None])
    return vae


def plane_forward(self: WanCausalConv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """For a first frame only the last slice of the kernel meets anything but padding."""
    if x.shape[2] > 1 or cache_x is not None or self.kernel_size[0] == 1:
        return WanCausalConv3d.forward(self, x, cache_x)
    y = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.kernel_size[1] // 2)
    return y[:, :, None]


def encode(vae: AutoencoderKLWan, x: torch.Tensor) -> DiagonalGaussianDistribution:
    """As vae.encode, but in two pieces (the first frame, all others) instead of pieces of 4 frames: equal, faster."""
    x = patchify(x, vae.config.patch_size)  # (B, 12, T, 32, 32)
    vae.clear_cache()
    parts = [vae.encoder(part, vae._enc_feat_map, [0]) for part in (x[:, :, :1], x[:, :, 1:]) if part.shape[2]]
    vae.clear_cache()
    return DiagonalGaussianDistribution(vae.quant_conv(torch.cat(parts, 2)))


def decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """As vae.decode in two pieces and without its clamp, whose gradient is zero where training needs it."""
    z = vae.post_quant_conv(z)
    vae.clear_cache()
    pieces = [vae.decoder(z[:, :, :1], vae._feat_map, [0], first_chunk=True)]
    if z.shape[2] > 1:
        pieces.append(vae.decoder(z[:, :, 1:], vae._feat_map, [0]))
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, 2), vae.config.patch_size)


def normalise(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


def loss_of(vae: AutoencoderKLWan, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + L2 + L1 of differences in space and time + a light KL term; also returns the mean squared error."""
    posterior = encode(vae, x)
    y = decode(vae, posterior.sample())
    edge = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in ((2, 3, 4) if x.shape[2] > 1 else (3, 4)))
    mse = F.mse_loss(y, x)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return F.l1_loss(y, x) + 2 * mse + edge + 1e-4 * kl, mse


def batch(rng: random.Random, own: torch.Tensor, everything: torch.Tensor, frames: int, size: int) -> torch.Tensor:
    """Cuts of `frames` frames (B, 3, T, 64, 64) from new clips; a quarter of the batches show any emoji at all."""
    if rng.random() < 0.25:
        own = everything[[rng.randrange(len(everything)) for _ in own]]
    starts = [rng.randrange(FRAMES - frames + 1) for _ in range(size)]
    return torch.stack([clip(rng, own, cut=slice(s, s + frames))[0].movedim(1, 0) for s in starts])


@torch.no_grad()
def measure(vae: AutoencoderKLWan, pictures: torch.Tensor, count: int = 32) -> tuple[float, torch.Tensor]:
    """PSNR in dB over `count` whole clips by vae.encode and vae.decode themselves, and the clips' latents."""
    rng, errors, latents = random.Random(10_000), [], []
    for _ in range(count):
        x = clip(rng, pictures)[0].movedim(1, 0)[None, :, :29]  # (1, 3, 29, 64, 64): 1 + 4 n frames
        z = vae.encode(x).latent_dist.mean
        errors.append(((vae.decode(z).sample - x) / 2).square().mean((1, 3, 4)))  # a frame's error
        latents.append(z)
    return (-10 * torch.cat(errors).log10()).mean().item(), torch.cat(latents)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--output", type=Path, default=Path("emoji_video_vae"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = random.Random(1)
    own, everything = objects(args.data), load_pictures(args.data)[0]
    vae = new_vae()
    for layer in vae.modules():
        if isinstance(layer, WanCausalConv3d):
            layer.forward = MethodType(plane_forward, layer)
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters")
    opts = optimizers(vae, list(vae.parameters()), args.lr)
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        progress = (time.monotonic() - start) / (60 * args.minutes)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, progress)))
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["peak"] * min(1, (step + 1) / 50) * max(0.01, cosine)
        frames, size = (1, 16) if progress < 0.6 else rng.choice([(1, 16), (5, 4), (9, 2), (9, 2), (17, 1)])
        loss, mse = loss_of(vae, batch(rng, own, everything, frames, size))
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for opt in opts:
            opt.step()
        step += 1
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"step {step} {seconds:.0f} s loss {loss.item():.4f} mse {mse.item():.5f}", flush=True)
    for layer in vae.modules():
        layer.__dict__.pop("forward", None)
    quality, latents = measure(vae, own)
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))  # (8,)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    vae.save_pretrained(args.output)
    print(f"PSNR {quality:.2f} dB on moving clips, saved to {args.output} after step {step}")


if __name__ == "__main__":
    main()
